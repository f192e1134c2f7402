import { expect, test } from 'bun:test'
import { contracts } from '#services/workers/contracts.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
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

test('what is waited for is looked at without reading what lives, and its end is found though nobody told of it', async () => {
  const clock = manualClock()
  const store = createSqliteBroker({ path: ':memory:', now: clock.now })
  const reads: { ids: readonly string[]; endedOnly: boolean }[] = []
  let looked = Promise.withResolvers<void>()
  const broker = {
    ...store,
    // Its events are all lost.
    watch: async () => ({ close: async () => {} }),
    async get(...[ids, options]: Parameters<typeof store.get>) {
      reads.push({ ids, endedOnly: options?.endedOnly === true })
      const found = await store.get(ids, options)
      looked.resolve()
      return found
    },
  }
  const app = createApp({ broker, contracts, log: silentLog, auth: null, clock, pollMs: 1_000 })
  const ids = ['a1', 'a2', 'a3']
  for (const id of ids) {
    const envelope = encodeEnvelope({ task_id: id, kind: 'sum', payload: { num1: 1, num2: 2 } })
    await store.enqueue([{ id, kind: 'sum', priority: 'normal', envelope }])
  }
  const answers = ids.map((id) => app.request(`/task/${id}?wait=60`))
  while (reads.length < 3) await nextTurn()
  await nextTurn()
  reads.length = 0
  for (let polls = 1; polls <= 5; polls++) {
    looked = Promise.withResolvers()
    clock.advance(1_000)
    await looked.promise
    await nextTurn()
    expect(reads).toHaveLength(polls)
  }
  expect(reads.every(({ endedOnly }) => endedOnly)).toBe(true)
  const { tasks } = await store.claim({ kinds: ['sum'], limit: 3, leaseMs: 30_000, takeBack: false })
  const record = JSON.stringify({ result: '3', status_code: 200, content_type: 'application/json' })
  await store.settle(
    tasks.map(({ id, kind, token }) => ({
      ...{ type: 'end', id, kind, token, state: 'succeeded', record, endedAt: 1, expiresAt: null },
    })),
  )
  clock.advance(1_000)
  for (const answer of await Promise.all(answers)) expect(await answer.json()).toMatchObject({ result: 3 })
  expect(reads.every(({ endedOnly }) => endedOnly)).toBe(true)
  await store.close()
})

test('many who ask at once wait for each other, and for none when the store does not answer', async () => {
  let underWay = 0
  let most = 0
  let answer = Promise.withResolvers<void>()
  const store = createSqliteBroker({ path: ':memory:' })
  const broker = {
    ...store,
    async get(...args: Parameters<typeof store.get>) {
      most = Math.max(most, ++underWay)
      try {
        await answer.promise
        return await store.get(...args)
      } finally {
        underWay--
      }
    },
  }
  const app = createApp({ broker, contracts, log: silentLog, auth: null })
  const ask = () => Promise.all(Array.from({ length: 100 }, async () => (await app.request('/task/a1')).status))
  let statuses = ask()
  await nextTurn()
  answer.resolve()
  expect(await statuses).toEqual(Array(100).fill(404))
  expect(most).toBeLessThanOrEqual(16)
  answer = Promise.withResolvers()
  statuses = ask()
  await nextTurn()
  answer.reject(new StoreUnavailable('It is away.'))
  expect(await statuses).toEqual(Array(100).fill(503))
  expect(underWay).toBe(0)
  await store.close()
})
