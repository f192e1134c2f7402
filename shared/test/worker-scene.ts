import * as z from 'zod'
import { retryTask } from '#shared/broker/retry.ts'
import { cancelTree } from '#shared/broker/tree.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { type Contract, defineTask } from '#shared/task/define.ts'
import { readRecord } from '#shared/task/record.ts'
import { encodeEnvelope, type FinalRecord } from '#shared/task/task.ts'
import { type Implementation, implement } from '#shared/worker/implement.ts'
import { createWorker, type WorkerOptions } from '#shared/worker/worker.ts'
import { manualClock } from './manual-clock.ts'
import type { stores } from './stores.ts'

/** A kind whose payload and result may be anything, and whose handler the test gives. */
export function kind(name: string, rules: Partial<Parameters<typeof defineTask>[0]> = {}) {
  return defineTask({ kind: name, description: name, input: z.any(), output: z.any(), ...rules }) as Contract<
    z.ZodAny,
    z.ZodAny
  >
}

export const add = defineTask({
  kind: 'add',
  description: 'Adds.',
  input: z.object({ a: z.number(), b: z.number() }),
  output: z.number(),
})
export const adder = implement(add, ({ a, b }) => a + b)

/** A broker on an empty store, a clock that stands still, and words for what tests of handlers often do. */
export function workerScene(store: (typeof stores)[number]) {
  const clock = manualClock()
  const broker = store.open({ now: clock.now })
  const log: string[] = []

  function worker(implementations: readonly Implementation[], options: Partial<WorkerOptions> = {}) {
    return createWorker({
      ...{ broker, clock, implementations, keyring: null, log: createLogger('debug', (line) => log.push(line)) },
      ...{ random: () => 1, ...options },
    })
  }

  async function recordOf(id: string): Promise<FinalRecord> {
    const [stored] = await broker.get([id])
    const record = stored?.record ? readRecord(stored.record) : null
    if (!record) throw new Error(`Task ${id} has not ended: ${JSON.stringify(stored)}`)
    return record
  }

  return {
    broker,
    clock,
    log,
    worker,
    recordOf,
    resultOf: async (id: string): Promise<unknown> => JSON.parse((await recordOf(id)).result),

    async create(contract: Contract, payload: unknown = {}, more: Record<string, unknown> = {}): Promise<string> {
      const id = crypto.randomUUID()
      const envelope = encodeEnvelope({ task_id: id, kind: contract.kind, payload, created_at: clock.now(), ...more })
      await broker.enqueue([{ id, kind: contract.kind, priority: 'normal', envelope }])
      return id
    },

    async liveOf(id: string) {
      const [stored] = await broker.get([id])
      return stored?.live ?? null
    },

    /** Drains while time goes on, a millisecond in a few turns of the event loop. */
    async drain(implementations: readonly Implementation[], options: Partial<WorkerOptions> = {}): Promise<number> {
      let isDone = false
      const drained = worker(implementations, options)
        .drain()
        .finally(() => {
          isDone = true
        })
      while (!isDone) {
        for (let turn = 0; turn < 4; turn++) await nextTurn()
        clock.advance(1)
      }
      return (await drained).ran
    },

    retry: (id: string, ...contracts: Contract[]) =>
      retryTask({ broker, contracts: Object.fromEntries(contracts.map((one) => [one.kind, one])), now: clock.now }, id),
    cancel: (id: string, contract: Contract) =>
      cancelTree({ broker, contracts: { [contract.kind]: contract }, now: clock.now }, id),
  }
}

export type WorkerScene = ReturnType<typeof workerScene>
