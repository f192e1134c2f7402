import { expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import type { StoreConfig } from '#shared/runtime/config.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { openBroker } from './open.ts'

const options = { partitions: 1, log: silentLog }

test.each<StoreConfig>([
  { type: 'sqlite', path: ':memory:' },
  { type: 'redis', url: process.env['REDIS_TEST_URL'] ?? 'redis://localhost:6379', waitReplicas: 0 },
])('opens %j', async (store) => {
  const broker = await openBroker(store, options)
  const [id, kind] = [crypto.randomUUID(), `open-${crypto.randomUUID()}`]
  const envelope = JSON.stringify({ task_id: id, v: 1, payload: {} })
  await broker.enqueue([{ id, kind, priority: 'normal', envelope }])
  expect((await broker.get([id]))[0]?.live).toMatchObject({ state: 'queued', kind })
  await broker.cancel([{ id, kind, record: '{}', endedAt: 0, expiresAt: null }])
  await broker.remove([{ id, ended: { kind, state: 'cancelled', at: 0, expiresAt: null } }])
  await broker.close()
})

test('a Redis without replicas acknowledges nothing when one must have it', async () => {
  const server = await startRedis()
  const broker = await openBroker({ type: 'redis', url: server.url, waitReplicas: 1 }, options)
  const redis = new Redis(server.url)
  let answer: unknown
  void broker.enqueue([{ id: 'a', kind: 'open', priority: 'normal', envelope: '{}' }]).then(
    () => {
      answer = 'acknowledged'
    },
    (error: unknown) => {
      answer = error
    },
  )
  const waits = async () => String(await redis.client('LIST')).includes('cmd=wait')
  while (answer === undefined && !(await waits()));
  // The call need not be waited for to its end: a connection that is closed has none.
  await broker.close()
  while (answer === undefined) await redis.ping()
  expect(answer).toBeInstanceOf(StoreUnavailable)
  redis.disconnect()
  await server.stop()
})

test('Redis over REST is opened though nobody answers there', async () => {
  const broker = await openBroker({ type: 'upstash', url: 'https://127.0.0.1:1', token: 'hush' }, options)
  await broker.close()
  await expect(broker.ping()).rejects.toThrow('closed')
})
