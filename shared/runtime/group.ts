/** Adds items to a group commit; resolves with their results in order, rejects with the error of the commit they were in. */
export type Group<In, Out> = (items: readonly In[]) => Promise<Out[]>

interface Entry<In, Out> {
  items: readonly In[]
  resolve: (results: Out[]) => void
  reject: (error: unknown) => void
}

/**
 * Group commit: while one commit is under way, new items collect for the next, so that calls become few under load and none waits when idle (a
 * lone one goes at the end of the tick that added it). The items of one call stay together in one commit, which may
 * therefore exceed `maxBatch` when that call alone does. A failed commit rejects the items in it and no others.
 */
export function createGroup<In, Out>(
  commit: (batch: In[]) => Promise<readonly Out[]>,
  options: {
    maxBatch: number
    /** The size of an item, and how much of it goes into one commit. */
    weigh?: (item: In) => number
    maxWeight?: number
    /** Resolves when the first commit after a pause may go: by default after the microtasks that are queued. */
    gather?: () => Promise<void>
    /** When so many items wait, a second commit may go beside the one that is under way: it keeps a store busy that answers as fast as it is asked. */
    secondAt?: number
  },
): Group<In, Out> {
  const { gather = () => Promise.resolve(), secondAt = Number.POSITIVE_INFINITY } = options
  const waiting: Entry<In, Out>[] = []
  let waitingItems = 0
  let running = 0

  async function run(): Promise<void> {
    await gather()
    while (waiting.length > 0 && (running === 1 || waitingItems >= secondAt)) {
      const entries = nextEntries(waiting, options)
      for (const { items } of entries) waitingItems -= items.length
      await commitEntries(entries, commit)
    }
    running--
  }

  return (items) => {
    if (items.length === 0) return Promise.resolve([])
    return new Promise((resolve, reject) => {
      waiting.push({ items, resolve, reject })
      waitingItems += items.length
      if (running >= (waitingItems >= secondAt ? 2 : 1)) return
      running++
      void run()
    })
  }
}

function nextEntries<In, Out>(
  waiting: Entry<In, Out>[],
  limits: { maxBatch: number; weigh?: (item: In) => number; maxWeight?: number },
): Entry<In, Out>[] {
  const { maxBatch, weigh = () => 0, maxWeight = Number.POSITIVE_INFINITY } = limits
  let count = 0
  let size = 0
  let weight = 0
  for (const { items } of waiting) {
    size += items.length
    for (const item of items) weight += weigh(item)
    if (count > 0 && (size > maxBatch || weight > maxWeight)) break
    count++
  }
  return waiting.splice(0, count)
}

async function commitEntries<In, Out>(
  entries: Entry<In, Out>[],
  commit: (batch: In[]) => Promise<readonly Out[]>,
): Promise<void> {
  const batch = entries.flatMap(({ items }) => items)
  try {
    const results = await commit(batch)
    if (results.length !== batch.length) throw new Error(`A commit of ${batch.length} gave ${results.length} results.`)
    let from = 0
    for (const { items, resolve } of entries) {
      resolve(results.slice(from, from + items.length))
      from += items.length
    }
  } catch (error) {
    for (const { reject } of entries) reject(error)
  }
}
