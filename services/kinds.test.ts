import { afterEach, describe, expect, test } from 'bun:test'
import type { Broker } from '#shared/broker/broker.ts'
import { unregisteredKinds } from '#shared/broker/unregistered.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { stores } from '#shared/test/stores.ts'
import { noteKinds } from './kinds.ts'
import { contracts } from './workers/contracts.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

for (const store of stores) {
  describe(`a process that starts, on ${store.name}`, () => {
    function setup() {
      const clock = manualClock()
      const broker = store.open({ now: clock.now })
      cleanups.push(() => broker.close())
      const lines: string[] = []
      const log = createLogger('info', (line) => lines.push(line))
      const controller = new AbortController()
      async function add(kind: string, dueAt: number | null = null) {
        const id = crypto.randomUUID()
        const envelope = encodeEnvelope({ task_id: id, kind, payload: null })
        await broker.enqueue([{ id, kind, priority: 'normal', envelope, dueAt }])
      }
      const start = (of: Broker = broker, more: readonly string[] = []) =>
        noteKinds({ broker: of, log, clock, signal: controller.signal }, more)
      return { broker, clock, lines, add, start, stop: () => controller.abort() }
    }

    test('says which tasks wait of kinds that are no longer registered, and how many', async () => {
      const { broker, clock, lines, add, start } = setup()
      // A version that had one kind more.
      await start(broker, ['retired'])
      await add('retired')
      await add('retired', clock.now() + 60_000)
      await add('sum')
      await start(broker, ['retired'])
      expect(lines).toEqual([])
      await start()
      expect(lines.map((line) => JSON.parse(line))).toMatchObject([{ level: 'WARN', tasks: { retired: 2 } }])
      expect(await unregisteredKinds(broker, Object.keys(contracts))).toMatchObject([
        { kind: 'retired', queued: 1, delayed: 1 },
      ])
    })

    test('says nothing of what has ended', async () => {
      const { broker, lines, add, start } = setup()
      await start(broker, ['retired'])
      await add('retired')
      const { tasks } = await broker.claim({ kinds: ['retired'], limit: 1, leaseMs: 1_000, takeBack: false })
      const end = { type: 'end', state: 'succeeded', record: 'record', endedAt: 0, expiresAt: null } as const
      await broker.settle(tasks.map((task) => ({ ...task, ...end })))
      await start()
      expect(lines).toEqual([])
    })

    test('goes on trying while the store does not answer, until it is told to stop', async () => {
      const { broker, clock, lines, add, start, stop } = setup()
      await broker.kinds(['retired'])
      await add('retired')
      let calls = 0
      const away: Broker = {
        ...broker,
        kinds(noted) {
          calls++
          return calls < 3 ? Promise.reject(new StoreUnavailable('away')) : broker.kinds(noted)
        },
      }
      const noted = start(away)
      while (lines.length === 0) {
        await new Promise((resolve) => setImmediate(resolve))
        clock.advance(5_000)
      }
      await noted
      expect(calls).toBe(4)

      const ending = start({ ...broker, kinds: () => Promise.reject(new StoreUnavailable('away')) })
      stop()
      await ending
    })
  })
}
