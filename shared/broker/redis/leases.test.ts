import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import { encodeEnvelope } from '#shared/task/task.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import type { Broker, Claimed, NewTask } from '../broker.ts'
import { cancellation, end, LEASE_MS, release, retryAt } from '../suite/scene.ts'
import { createRedisBroker } from './redis.ts'
import { createTcpClient } from './tcp.ts'

describe('leases in Redis', () => {
  let server: RedisServer
  let redis: Redis
  let broker: Broker
  let clock: ManualClock

  beforeAll(async () => {
    server = await startRedis()
    redis = new Redis(server.url)
  })
  afterAll(async () => {
    redis.disconnect()
    await server.stop()
  })
  beforeEach(() => {
    clock = manualClock()
    broker = createRedisBroker(createTcpClient({ url: server.url }), { now: clock.now })
  })
  afterEach(async () => {
    await broker.close()
    await redis.flushall()
  })

  const task = (id: string, payload: unknown = {}): NewTask => {
    const envelope = encodeEnvelope({ task_id: id, kind: 'sum', payload, created_at: 1 })
    return { id, kind: 'sum', priority: 'normal', envelope }
  }
  const claim = async (fields: { limit?: number; takeBack?: boolean } = {}) =>
    (await broker.claim({ kinds: ['sum'], limit: 1_000, leaseMs: LEASE_MS, takeBack: false, ...fields })).tasks
  async function claimed(count: number): Promise<Claimed[]> {
    await broker.enqueue(Array.from({ length: count }, (_, i) => task(`t${i}`)))
    const tasks = await claim()
    expect(tasks.length).toBe(count)
    return tasks
  }
  /** What is kept of leases. */
  const leases = async () => ({
    running: await redis.zcard('sum_task_queue:running'),
    leases: await redis.hlen('tasks:leases'),
    live: await redis.hlen('tasks:live'),
  })
  const NOTHING = { running: 0, leases: 0, live: 0 }

  test('a claim of many makes one, and leaves their live values as they are', async () => {
    await broker.enqueue(Array.from({ length: 300 }, (_, i) => task(`t${i}`)))
    const before = await redis.hgetall('tasks:live')
    await claim()
    expect(await redis.hgetall('tasks:live')).toMatchObject(before)
    expect(await leases()).toEqual({ running: 1, leases: 2, live: 600 })
  })

  test('nothing is left of one when its tasks have ended, in whatever way, and whenever', async () => {
    const tasks = await claimed(9)
    const [a, b, c, d, e, ...rest] = tasks as [Claimed, Claimed, Claimed, Claimed, Claimed]
    await broker.settle([end(a), end(b)])
    await broker.cancel([cancellation(c)])
    await broker.extend([d, e], LEASE_MS)
    await broker.settle([release(d), retryAt(e, clock.now() + 1)])
    await broker.settle(rest.map((one) => end(one)))
    expect(await leases()).toEqual({ running: 0, leases: 0, live: 2 })
    clock.advance(1)
    await broker.settle((await claim({ takeBack: true })).map((one) => end(one)))
    expect(await leases()).toEqual(NOTHING)
  })

  test('tasks of one that are too large for one answer come back in parts, and none twice', async () => {
    const large = 'x'.repeat(300_000)
    await broker.enqueue(Array.from({ length: 8 }, (_, i) => task(`t${i}`, large)))
    const held: Claimed[] = []
    while (held.length < 8) held.push(...(await claim()))
    // All of one lease.
    await broker.extend(held, LEASE_MS)
    expect(await leases()).toMatchObject({ running: 1 })
    clock.advance(LEASE_MS)
    const back: Claimed[] = []
    for (let calls = 0; back.length < 8 && calls < 20; calls++) back.push(...(await claim({ takeBack: true })))
    expect(back.map(({ id, attempt }) => `${id} ${attempt}`).toSorted()).toEqual(
      held.map(({ id }) => `${id} 2`).toSorted(),
    )
    await broker.settle(back.map((one) => end(one)))
    expect(await leases()).toEqual(NOTHING)
  })

  describe('of an earlier version, one for each task, with the token in the live value', () => {
    const envelope = task('old').envelope
    beforeEach(async () => {
      await redis.hset('tasks:live', 'old', `running abc 1700000000000 1 0 0 2 sum -\n${envelope}`)
      await redis.zadd('sum_task_queue:running', clock.now() + LEASE_MS, 'old')
    })

    test('are shown as running', async () => {
      expect((await broker.get(['old']))[0]?.live).toMatchObject({ state: 'running', startedAt: 1_700_000_000_000 })
      expect(await broker.stats(['sum'])).toMatchObject([{ running: 1, queued: 0 }])
      expect(await broker.list({ kind: 'sum', state: 'running', after: [], limit: 9 })).toMatchObject([{ id: 'old' }])
    })

    test('come back when they end', async () => {
      expect(await claim({ takeBack: true })).toEqual([])
      clock.advance(LEASE_MS)
      const [back] = (await claim({ takeBack: true })) as [Claimed]
      expect(back).toMatchObject({ id: 'old', attempt: 3, envelope })
      expect((await broker.settle([end(back)])).refused).toEqual([])
      expect(await leases()).toEqual(NOTHING)
    })

    test('end when the task is cancelled', async () => {
      expect(await broker.cancel([cancellation({ id: 'old', kind: 'sum' })])).toMatchObject([{ cancelled: true }])
      expect(await leases()).toEqual(NOTHING)
    })
  })
})
