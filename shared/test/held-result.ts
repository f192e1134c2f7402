/** A creator and a worker over one store, of which the worker has the result of a task in hand that is not stored yet. */
import { createApp } from '#services/creator/app.ts'
import { contracts } from '#services/workers/contracts.ts'
import { sum } from '#services/workers/sum/contract.ts'
import type { Broker } from '#shared/broker/broker.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { readRecord } from '#shared/task/record.ts'
import type { FinalRecord } from '#shared/task/task.ts'
import { implement } from '#shared/worker/implement.ts'
import { createWorker } from '#shared/worker/worker.ts'

export interface HeldResult {
  post(path: string, body: unknown, key?: string): Promise<Response>
  /** Asks for a sum, for one with a key, and for a batch of three sequences: the status and `Retry-After` of each answer. */
  postAll(): Promise<{ status: number; retryAfter: string | null }[]>
  /** Ends the handler; resolves when the store has not taken its result. */
  finish(): Promise<void>
  /** Resolves when the result is stored and nothing else is queued: the record, and how often the handler ran for it. */
  stored(): Promise<{ record: FinalRecord | null; ran: number }>
}

/** Creates the task, 1 + 2, and starts the worker; resolves when its handler runs. */
export async function holdResult(broker: Broker): Promise<HeldResult> {
  const lines: string[] = []
  const log = createLogger('info', (line) => lines.push(line))
  const app = createApp({ broker, contracts, keyring: null, managerUrl: 'http://manager', log, auth: null })
  const post = async (path: string, body: unknown, key?: string) =>
    app.request(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...(key === undefined ? {} : { 'Idempotency-Key': key }) },
      body: JSON.stringify(body),
    })

  const started = Promise.withResolvers<void>()
  const finished = Promise.withResolvers<void>()
  const runs = new Map<string, number>()
  const adder = implement(sum, async ({ num1, num2 }, ctx) => {
    runs.set(ctx.taskId, (runs.get(ctx.taskId) ?? 0) + 1)
    started.resolve()
    await finished.promise
    return num1 + num2
  })
  const { task_id: id } = (await (await post('/sum', { num1: 1, num2: 2 })).json()) as { task_id: string }
  const drained = createWorker({ broker, implementations: [adder], keyring: null, log }).drain()
  await started.promise

  return {
    post,
    async postAll() {
      const payload = { num1: 3, num2: 4 }
      const answers = [
        await post('/sum', payload),
        await post('/sum', payload, 'key'),
        await post('/sequence/batch', { payloads: [{ n: 1 }, { n: 2 }, { n: 3 }] }),
      ]
      return answers.map(({ status, headers }) => ({ status, retryAfter: headers.get('Retry-After') }))
    },
    async finish() {
      finished.resolve()
      while (!lines.some((line) => line.includes('does not answer; trying again'))) await nextTurn()
    },
    async stored() {
      await drained
      const [stored] = await broker.get([id])
      return { record: stored?.record ? readRecord(stored.record) : null, ran: runs.get(id) ?? 0 }
    },
  }
}
