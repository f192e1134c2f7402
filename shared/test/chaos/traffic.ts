import type { Member, StoreAddress } from './fleet.ts'
import type { Creation } from './plan.ts'
import type { Random } from './random.ts'
import type { Recording } from './recording.ts'

/** Those who use Tasker over HTTP, and write down what they were told. */
export interface Traffic {
  /** Resolves when everything was created that could be. */
  readonly created: Promise<void>
  /** Answers to creations: how many said no, or did not come. */
  readonly refused: { status: Record<string, number> }
  /** Creations that were acknowledged, by how their creator reaches the store. */
  readonly acknowledged: Record<StoreAddress['type'], number>
  /** Ends it all, waiting for no more answers. */
  stop(): Promise<void>
}

const READERS = 4
const ANSWER_MS = 10_000

export function startTraffic(options: {
  creations: readonly Creation[]
  recording: Recording
  creators: readonly Member[]
  managers: readonly Member[]
  random: Random
  /** Nothing is tried any more so many ms after the start. */
  untilMs: number
}): Traffic {
  const { creations, recording, creators, managers, random, untilMs } = options
  const refused = { status: {} as Record<string, number> }
  const acknowledged = { sqlite: 0, redis: 0, rest: 0, cluster: 0 }
  const begun = performance.now()
  const stopping = new AbortController()
  const elapsed = () => performance.now() - begun

  async function send(url: string, init: RequestInit = {}): Promise<{ status: number; body: unknown } | null> {
    try {
      const signal = AbortSignal.any([AbortSignal.timeout(ANSWER_MS), stopping.signal])
      const headers = { 'Content-Type': 'application/json', ...init.headers }
      const response = await fetch(url, { ...init, headers, signal })
      return { status: response.status, body: await response.json() }
    } catch {
      return null
    }
  }

  async function create({ specs, options: given, key, cancelAfterMs }: Creation): Promise<void> {
    const [first] = specs
    if (!first) return
    const batch = specs.length > 1
    const payloads = specs.map(({ payload }) => payload)
    const body = JSON.stringify(batch ? { payloads } : { payload: first.payload, options: given })
    for (;;) {
      const path = batch ? `/${first.kind}/batch` : `/${first.kind}`
      const headers: Record<string, string> = key === null ? {} : { 'Idempotency-Key': key }
      const creator = random.pick(creators)
      const answer = await send(creator.urls.creator + path, { method: 'POST', body, headers })
      if (answer?.status === 201) {
        const { task_id, task_ids } = answer.body as { task_id?: string; task_ids?: string[] }
        acknowledged[creator.store]++
        const at = Date.now()
        const ids = task_ids ?? (task_id === undefined ? [] : [task_id])
        ids.forEach((id, i) => {
          const spec = specs[i]
          if (spec) recording.acknowledged.push({ id, spec, key, at })
        })
        if (cancelAfterMs !== null && ids[0] !== undefined) await cancel(ids[0], cancelAfterMs)
        // Sometimes it is sent again though it was acknowledged, as by a client that missed the answer.
        if (key === null || random.next() > 0.1) return
        await Bun.sleep(random.whole(0, 500))
        continue
      }
      const status = answer === null ? 'no answer' : String(answer.status)
      refused.status[status] = (refused.status[status] ?? 0) + 1
      if (elapsed() > untilMs || stopping.signal.aborted) return
      await Bun.sleep(100)
    }
  }

  async function cancel(id: string, afterMs: number): Promise<void> {
    await Bun.sleep(afterMs)
    const cancellation = { id, at: null as number | null }
    recording.cancellations.push(cancellation)
    const answer = await send(`${random.pick(managers).urls.manager}/task/${id}/cancel`, { method: 'POST', body: '{}' })
    if (answer?.status === 200) cancellation.at = Date.now()
  }

  async function readers(): Promise<void> {
    while (!stopping.signal.aborted) {
      if (recording.acknowledged.length === 0) {
        await Bun.sleep(20)
        continue
      }
      // Mostly those that were created lately: they may be about to end.
      const back = random.next() < 0.7 ? 200 : recording.acknowledged.length
      const one = recording.acknowledged.at(-random.whole(1, Math.min(back, recording.acknowledged.length)))
      const wait = random.pick([0, 0, 0, 1])
      if (one) await look(one.id, wait)
      await Bun.sleep(5)
    }
  }

  async function look(id: string, wait: number): Promise<void> {
    const answer = await send(`${random.pick(managers).urls.manager}/task/${id}?wait=${wait}`)
    if (answer?.status !== 200) return
    const { status, result, status_code, error, attempt, finished_at } = answer.body as Record<string, unknown>
    if (finished_at === null) return
    const view = JSON.stringify({ status, result, status_code, error, attempt, finished_at })
    recording.seen.push({ id, at: Date.now(), view })
  }

  async function createAll(): Promise<void> {
    const under: Promise<void>[] = []
    for (const creation of creations) {
      const wait = creation.at - elapsed()
      if (wait > 5) await Bun.sleep(wait)
      if (stopping.signal.aborted) break
      under.push(create(creation))
    }
    await Promise.all(under)
  }

  const created = createAll()
  const reading = Promise.all(Array.from({ length: READERS }, readers))
  return {
    ...{ created, refused, acknowledged },
    async stop() {
      stopping.abort()
      await Promise.all([created, reading])
    },
  }
}
