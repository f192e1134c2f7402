/** What a run needs to know of the stores. */
export interface Setting {
  /** A Redis that the run may fill. */
  readonly redisUrl: string
  /** A REST endpoint before that Redis. */
  readonly rest: { readonly url: string; readonly token: string }
  /** Nodes of a Cluster that the run may fill; empty when nobody was asked for who needs one. */
  readonly clusterUrl: string
  /** A folder on disk, empty before the first phase of a run. */
  readonly dir: string
}

/** A queue under test. One kind of task: two numbers are added, and the sum is stored as its result. */
export interface Contestant {
  /** Adds n tasks as its documentation advises for many; resolves when the store has acknowledged them. */
  add(n: number): Promise<void>
  /** As `add`, for a worker that is measured alone later. Where it is left out, `add` does. */
  fill?(n: number): Promise<void>
  /** Resolves when n more tasks have completed and their results are stored. The first call starts the worker, which then goes on. */
  work(n: number): Promise<void>
  /** Adds one task and resolves when its result is here, by the fastest way the contestant offers. Starts the worker too. */
  one?(): Promise<void>
  /** Results that are in the store. */
  stored(): Promise<number>
  close(): Promise<void>
}

/** What is asked of a contestant: only those who wait for single results pay for events. */
export type Purpose = 'throughput' | 'results'

export type Open = (setting: Setting, purpose: Purpose) => Promise<Contestant>

/** Tasks that go to the store in one call of `add`, the same for all. */
export const BATCH = 1_000

/** Calls `each` with the sizes of the batches that n tasks are added in, one after the other. */
export async function inBatches(n: number, each: (size: number, from: number) => Promise<unknown>): Promise<void> {
  for (let from = 0; from < n; from += BATCH) await each(Math.min(BATCH, n - from), from)
}

/** The payload of the i-th task. */
export function payload(i: number): { num1: number; num2: number } {
  return { num1: i, num2: 7 }
}

/** Counts tasks whose result is stored, and tells when so many more have come. */
export function createCounter() {
  let count = 0
  const waiting = new Set<{ target: number; resolve: () => void }>()
  return {
    add(n: number): void {
      count += n
      for (const entry of waiting) {
        if (count < entry.target) continue
        waiting.delete(entry)
        entry.resolve()
      }
    },
    more(n: number): Promise<void> {
      return new Promise((resolve) => waiting.add({ target: count + n, resolve }))
    },
  }
}
