import { expect, test } from 'bun:test'
import { contracts } from '#services/workers/contracts.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { createApp } from './app.ts'

test('those who wait beyond the limit get a 503, until another one has left', async () => {
  const broker = createSqliteBroker({ path: ':memory:' })
  const watched = Promise.withResolvers<void>()
  const watching = {
    ...broker,
    watch: (on: Parameters<typeof broker.watch>[0]) => {
      watched.resolve()
      return broker.watch(on)
    },
  }
  const app = createApp({ broker: watching, contracts, log: silentLog, auth: null, maxWaiters: 1 })
  const envelope = encodeEnvelope({ task_id: 'a1', kind: 'sum', payload: { num1: 1, num2: 2 } })
  await broker.enqueue([{ id: 'a1', kind: 'sum', priority: 'normal', envelope }])
  const leave = new AbortController()
  const first = app.request(new Request('http://manager/task/a1?wait=60', { signal: leave.signal }))
  await watched.promise

  const refused = await app.request('/task/a1?wait=60')
  expect(refused.status).toBe(503)
  expect(refused.headers.get('Retry-After')).toBe('1')
  expect(await refused.json()).toMatchObject({ type: 'urn:tasker:problem:too-many-waiters' })
  expect((await app.request('/task/a1')).status).toBe(200)
  expect((await app.request('/task/a1?wait=0')).status).toBe(200)

  leave.abort()
  expect((await first).status).toBe(200)
  expect((await app.request('/task/nope?wait=60')).status).toBe(404)
  await broker.close()
})
