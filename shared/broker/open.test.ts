import { expect, test } from 'bun:test'
import type { StoreConfig } from '#shared/runtime/config.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { openBroker } from './open.ts'

const options = { partitions: 1, log: silentLog }

test.each<StoreConfig>([
  { type: 'sqlite', path: ':memory:' },
  { type: 'redis', url: process.env['REDIS_TEST_URL'] ?? 'redis://localhost:6379' },
])('opens %j', async (store) => {
  const broker = await openBroker(store, options)
  const [id, kind] = [crypto.randomUUID(), `open-${crypto.randomUUID()}`]
  const envelope = JSON.stringify({ task_id: id, v: 1, payload: {} })
  await broker.enqueue([{ id, kind, priority: 'normal', envelope }])
  expect((await broker.get([id]))[0]?.live).toMatchObject({ state: 'queued', kind })
  await broker.cancel([{ id, kind, record: '{}', expiresAt: null }])
  await broker.remove([{ id, kind }])
  await broker.close()
})

test('a store that is not there yet is refused with what to do instead', async () => {
  const store = { type: 'upstash', url: 'https://x', token: 'hush' } as const
  await expect(openBroker(store, options)).rejects.toThrow('set REDIS_URL')
})
