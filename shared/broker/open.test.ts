import { expect, test } from 'bun:test'
import type { StoreConfig } from '#shared/runtime/config.ts'
import { silentLog } from '#shared/runtime/log.ts'
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

test('Redis over REST is opened without a request', async () => {
  const broker = await openBroker({ type: 'upstash', url: 'https://127.0.0.1:1', token: 'hush' }, options)
  await broker.close()
  await expect(broker.ping()).rejects.toThrow('closed')
})
