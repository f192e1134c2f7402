import { uuidv7 } from 'uuidv7'
import sequenceWorker from '../../services/workers/sequence/worker.ts'
import sumWorker from '../../services/workers/sum/worker.ts'
import type { Broker, NewTask } from '../../shared/broker/broker.ts'
import { silentLog } from '../../shared/runtime/log.ts'
import { encodeEnvelope } from '../../shared/task/task.ts'
import { createWorker } from '../../shared/worker/worker.ts'
import { type Contestant, createCounter, inBatches, payload } from './contestant.ts'

/** Tasker on any store: the worker that its images run, with its own concurrency, and tasks as the creator enqueues them. */
export function createTasker(
  broker: Broker,
  pace: { pollMs?: number; sweepMs?: number } = {},
): Contestant & { sequence(n: number): Promise<number> } {
  const stored = createCounter()
  const stop = new AbortController()
  /** A task has ended when the store has accepted its outcome: the answer to settle says so. */
  const counting: Broker = {
    ...broker,
    async settle(outcomes, next) {
      const settled = await broker.settle(outcomes, next)
      const ended = outcomes.filter(({ type, parent }) => type === 'end' && !parent).length
      stored.add(ended - settled.refused.length)
      return settled
    },
  }
  let working: Promise<void> | undefined
  const start = () => {
    working ??= createWorker({
      ...pace,
      broker: counting,
      implementations: [sumWorker, sequenceWorker],
      keyring: null,
      log: silentLog,
      graceMs: 0,
    }).loop(stop.signal)
  }

  const waiting = new Map<string, (record: string | null) => void>()
  let watching: Promise<unknown> | undefined
  async function resultOf(task: NewTask): Promise<string> {
    watching ??= broker.watch((event) => {
      if (event.type === 'end') for (const { id, record } of event.tasks) waiting.get(id)?.(record)
    })
    await watching
    const ended = new Promise<string | null>((resolve) => waiting.set(task.id, resolve))
    await broker.enqueue([task])
    const told = await ended
    waiting.delete(task.id)
    const record = told ?? (await broker.get([task.id]))[0]?.record
    if (!record) throw new Error(`Task ${task.id} ended without a record.`)
    return record
  }

  return {
    add: (n) =>
      inBatches(n, (size, from) =>
        broker.enqueue(Array.from({ length: size }, (_, i) => newTask('sum', payload(from + i)))),
      ),
    async work(n) {
      start()
      await stored.more(n)
    },
    async one() {
      start()
      await resultOf(newTask('sum', payload(1)))
    },
    async sequence(n) {
      start()
      const record = JSON.parse(await resultOf(newTask('sequence', { n }))) as { result: string }
      return Number(record.result)
    },
    async stored() {
      const [stats] = await broker.stats(['sum'])
      return stats?.succeeded ?? 0
    },
    async close() {
      stop.abort()
      await working
      await broker.close()
    },
  }
}

function newTask(kind: string, payload: unknown): NewTask {
  const id = uuidv7()
  const envelope = encodeEnvelope({ task_id: id, kind, payload, created_at: Date.now() })
  return { id, kind, priority: 'normal', envelope, fresh: true }
}
