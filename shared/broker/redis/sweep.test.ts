import { afterEach, beforeEach, expect, test } from 'bun:test'
import { manualClock } from '#shared/test/manual-clock.ts'
import { randomNamespace, redisTestUrl } from '#shared/test/stores.ts'
import type { Broker } from '../broker.ts'
import { sweepOnce } from '../expire.ts'
import { createRedisBroker } from './redis.ts'
import { createTcpClient } from './tcp.ts'

let brokers: Broker[]
const clock = manualClock()

beforeEach(() => {
  const namespace = randomNamespace()
  const open = () => createRedisBroker(createTcpClient({ url: redisTestUrl() }), { namespace, now: clock.now })
  brokers = Array.from({ length: 4 }, open)
})
afterEach(async () => {
  for (const broker of brokers) await broker.close()
})

/** Tasks that have ended, and expire in a second. */
async function ended(count: number, result = ''): Promise<string[]> {
  const [broker] = brokers as [Broker]
  const ids = Array.from({ length: count }, (_, i) => `t${i}`)
  for (let i = 0; i < count; i += 100) {
    await broker.enqueue(
      ids
        .slice(i, i + 100)
        .map((id) => ({ id, kind: 'sum', priority: 'normal', envelope: `{"task_id":"${id}","v":1}` })),
    )
    const { tasks } = await broker.claim({ kinds: ['sum'], limit: 100, leaseMs: 1_000, takeBack: false })
    const [finished_at, retention_s] = [clock.now(), 1]
    const record = JSON.stringify({ result, status_code: 200, kind: 'sum', finished_at, retention_s })
    await broker.settle(
      tasks.map(({ id, kind, token }) => ({
        ...{ type: 'end', id, kind, token, state: 'succeeded', record },
        ...{ endedAt: finished_at, expiresAt: finished_at + 1_000 },
      })),
    )
  }
  clock.advance(1_010)
  return ids
}

test('those who sweep at once share what has expired, and what one leaves is due again', async () => {
  const ids = await ended(1_000)
  const given = (await Promise.all(brokers.map((broker) => broker.sweep(200)))).map(({ expired }) => expired)
  expect(given.map((some) => some.length)).toEqual([200, 200, 200, 200])
  expect(new Set(given.flat()).size).toBe(800)
  const [first, , , last] = brokers as [Broker, Broker, Broker, Broker]
  const rest = (await last.sweep(500)).expired
  expect([...given.flat(), ...rest].toSorted()).toEqual(ids.toSorted())
  expect((await first.sweep(500)).expired).toEqual([])
  // Nobody has removed any of them.
  clock.advance(60_000)
  expect((await first.sweep(2_000)).expired.toSorted()).toEqual(ids.toSorted())
})

test('those who sweep on, side by side, forget everything, and each result is removed by one', async () => {
  const ids = await ended(1_000)
  const removed: string[] = []
  const work = brokers.map(async (broker) => {
    const counting: Broker = {
      ...broker,
      remove(tasks) {
        removed.push(...tasks.map(({ id }) => id))
        return broker.remove(tasks)
      },
    }
    const deps = { broker: counting, contracts: {}, now: clock.now }
    while ((await sweepOnce(deps, 100)).expired > 0);
  })
  await Promise.all(work)
  expect(removed.toSorted()).toEqual(ids.toSorted())
  const [broker] = brokers as [Broker]
  expect((await broker.stats(['sum']))[0]).toMatchObject({ succeeded: 0 })
})

test('large results that expire together are forgotten a few at a time', async () => {
  const ids = await ended(40, 'x'.repeat(300_000))
  const [broker] = brokers as [Broker]
  const parts: number[] = []
  const counting: Broker = {
    ...broker,
    remove(tasks) {
      parts.push(tasks.length)
      return broker.remove(tasks)
    },
  }
  expect(await sweepOnce({ broker: counting, contracts: {}, now: clock.now }, 500)).toMatchObject({ expired: 40 })
  expect(Math.max(...parts)).toBeLessThanOrEqual(3)
  expect(await broker.get(ids)).toEqual(ids.map(() => null))
})
