import { afterEach, describe, expect, test } from 'bun:test'
import * as z from 'zod'
import { silentLog } from '#shared/runtime/log.ts'
import { defineTask } from '#shared/task/define.ts'
import { childId, encodeEnvelope } from '#shared/task/task.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { randomNamespace, redisTestUrl, stores } from '#shared/test/stores.ts'
import { implement } from '#shared/worker/implement.ts'
import { createWorker } from '#shared/worker/worker.ts'
import type { Broker, NewTask, Outcome } from './broker.ts'
import { createRedisBroker } from './redis/redis.ts'
import { createTcpClient } from './redis/tcp.ts'
import { retryTask } from './retry.ts'
import { cancelTree } from './tree.ts'

const one = defineTask({ kind: 'one', description: '', input: z.number(), output: z.number() })
const all = defineTask({ kind: 'all', description: '', input: z.number(), output: z.number() })
const contracts = { one, all }
const ROOT = { id: 'r', kind: 'all' }

const opened: Broker[] = []
afterEach(async () => {
  for (const broker of opened.splice(0)) await broker.close()
})

const partitioned = {
  name: 'Redis in 3 partitions',
  open: ({ now }: { now: () => number }) =>
    createRedisBroker(createTcpClient({ url: redisTestUrl() }), { now, namespace: randomNamespace(), partitions: 3 }),
}

for (const store of [...stores, partitioned]) {
  describe(`retryTask on ${store.name}`, () => {
    function setup() {
      const clock = manualClock()
      const broker = store.open({ now: clock.now })
      opened.push(broker)
      const newTask = (id: string, kind: string, payload: number): NewTask => {
        const parent = id === ROOT.id ? undefined : ROOT
        const envelope = encodeEnvelope({ task_id: id, kind, payload, ...(parent && { parent }) })
        return { id, kind, priority: 'normal', parent, envelope }
      }
      const implementations = [
        implement(one, (n) => n),
        implement(all, async (n, ctx) => {
          const done = await ctx.map(
            one,
            Array.from({ length: n }, (_, i) => i),
          )
          return done.length
        }),
      ]
      const state = async (id: string) => {
        const [stored] = await broker.get([id])
        return stored?.live ?? JSON.parse(stored?.record ?? 'null')
      }
      const claim = async (kind: string) => {
        const { tasks } = await broker.claim({ kinds: [kind], limit: 1, leaseMs: 30_000, takeBack: false })
        if (!tasks[0]) throw new Error(`no ${kind}`)
        return tasks[0]
      }
      return {
        broker,
        clock,
        deps: { broker, contracts, now: clock.now },
        state,
        claim,
        add: (payload: number) => broker.enqueue([newTask(ROOT.id, ROOT.kind, payload)]),
        /** Calls the children of these numbers. */
        call: (token: string, from: number, to: number): Outcome => ({
          ...{
            ...ROOT,
            token,
            type: 'call',
            records: [],
            calls: to,
            steps: 0,
            order: '',
            park: to === 4,
            wakeAt: null,
            awaits: null,
          },
          children: Array.from({ length: to - from }, (_, i) => newTask(childId('r', from + i), 'one', from + i)),
        }),
        drain: () => createWorker({ broker, clock, implementations, keyring: null, log: silentLog }).drain(),
      }
    }

    test('calls all children anew of a task that was cancelled amid its fan-out', async () => {
      const { broker, deps, state, claim, add, call, drain } = setup()
      await add(4)
      const { token } = await claim('all')
      await broker.settle([call(token, 0, 2)])
      let looked = false
      const racing: Broker = {
        ...broker,
        async get(ids) {
          const stored = await broker.get(ids)
          // The fan-out goes on after the look that the cancelled record is made from.
          if (!looked) await broker.settle([call(token, 2, 4)])
          looked = true
          return stored
        },
      }
      await cancelTree({ ...deps, broker: racing }, 'r')
      expect(await state('r')).toMatchObject({ status: 'cancelled', calls: 2 })
      await retryTask(deps, 'r')
      expect(await state('r')).toMatchObject({ state: 'queued', calls: 2, steps: 0 })
      expect(await state('r.3')).toBeNull()
      await drain()
      expect(await state('r')).toMatchObject({ result: '4', status_code: 200 })
    })

    /** A broker that looks at children no further than the gate, and lets workers go on before it forgets any. */
    function slow({ broker, drain }: ReturnType<typeof setup>) {
      const gate = Promise.withResolvers<void>()
      const reached = Promise.withResolvers<void>()
      const slow: Broker = {
        ...broker,
        async get(ids) {
          if (ids.includes('r.0')) {
            reached.resolve()
            await gate.promise
          }
          return broker.get(ids)
        },
        async remove(tasks) {
          await drain()
          return broker.remove(tasks)
        },
      }
      return { slow, gate, reached: reached.promise }
    }

    async function failed(scene: ReturnType<typeof setup>) {
      const { broker, claim, add, clock } = scene
      await add(1)
      const { token } = await claim('all')
      await broker.settle([{ ...scene.call(token, 0, 1), park: true } as Outcome])
      const ends = { type: 'end', state: 'failed', endedAt: clock.now(), expiresAt: null } as const
      const record = (more: object) =>
        JSON.stringify({ ...{ result: 'no', status_code: 500, finished_at: clock.now() }, ...more })
      const child = await claim('one')
      await broker.settle([{ ...child, ...ends, parent: ROOT, record: record({ kind: 'one', parent: ROOT }) }])
      const root = await claim('all')
      await broker.settle([{ ...root, ...ends, record: record({ kind: 'all', payload: 1, calls: 1, steps: 0 }) }])
      return scene
    }

    test('of two at once one is refused, and the run that has begun again keeps its children', async () => {
      const scene = await failed(setup())
      const { deps, claim, call, broker, state, drain } = scene
      const { slow: behind, gate, reached } = slow(scene)
      const second = retryTask({ ...deps, broker: behind }, 'r').catch((error: Error) => error.message)
      await reached
      const first = await retryTask(deps, 'r').catch((error: Error) => error.message)
      if (first === undefined) {
        const { token } = await claim('all')
        await broker.settle([{ ...call(token, 0, 1), park: true } as Outcome])
      }
      gate.resolve()
      expect([first, await second].filter((refused) => refused !== undefined)).toHaveLength(1)
      await drain()
      expect(await state('r')).toMatchObject({ result: '1', status_code: 200 })
    })

    test('one that was held up for longer than its reservation leaves the run that has begun again alone', async () => {
      const scene = await failed(setup())
      const { deps, claim, call, broker, state, drain, clock } = scene
      const { slow: behind, gate, reached } = slow(scene)
      const first = retryTask({ ...deps, broker: behind }, 'r').catch((error: Error) => error.message)
      await reached
      clock.advance(60_001)
      await retryTask(deps, 'r')
      const { token } = await claim('all')
      await broker.settle([{ ...call(token, 0, 1), park: true } as Outcome])
      gate.resolve()
      expect(await first).toContain('someone else')
      expect(await state('r.0')).toMatchObject({ state: 'queued' })
      await drain()
      expect(await state('r')).toMatchObject({ result: '1', status_code: 200 })
    })
  })
}
