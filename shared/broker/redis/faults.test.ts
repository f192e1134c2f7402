import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import sequence from '#services/workers/sequence/worker.ts'
import sum from '#services/workers/sum/worker.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { DEFAULT_RETENTION_S, encodeEnvelope } from '#shared/task/task.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { randomNamespace, redisTestUrl } from '#shared/test/stores.ts'
import { startTcpProxy, type TcpProxy } from '#shared/test/tcp-proxy.ts'
import { createWorker } from '#shared/worker/worker.ts'
import type { Broker, Lease, NewTask } from '../broker.ts'
import { sweepOnce } from '../expire.ts'
import { AnswerLost } from './client.ts'
import { createRedisBroker, partitionOf } from './redis.ts'
import { createTcpClient } from './tcp.ts'

const task = (id: string): NewTask => ({
  ...{ id, kind: 'sum', priority: 'normal', fresh: true },
  envelope: encodeEnvelope({ task_id: id, payload: { num1: 1, num2: 2 } }),
})
const request = { kinds: ['sum'], limit: 10, leaseMs: 30_000, takeBack: false }

describe('a call to Redis whose answer is lost after Redis acted', () => {
  let proxy: TcpProxy
  let broker: Broker

  beforeEach(async () => {
    proxy = await startTcpProxy({ port: Number(new URL(redisTestUrl()).port) })
    broker = createRedisBroker(createTcpClient({ url: `redis://127.0.0.1:${proxy.port}` }), {
      namespace: randomNamespace(),
      resendAfterMs: [200, 200, 200],
    })
    // Scripts are loaded and the connection is there: what follows is one call each.
    await broker.claim(request)
    await broker.settle([{ type: 'release', id: 'x', kind: 'sum', token: 'x' }])
    await broker.enqueue([])
  })
  afterEach(async () => {
    await broker.close()
    await proxy.close()
  })

  test('enqueues once', async () => {
    await broker.enqueue([task('first')])
    proxy.loseNextAnswer()
    await broker.enqueue([task('a'), task('b')])
    expect((await broker.stats(['sum']))[0]?.queued).toBe(3)
  })

  test('claims what the lost answer had claimed, and nothing else', async () => {
    await broker.enqueue(['a', 'b', 'c'].map(task))
    proxy.loseNextAnswer()
    const claim = await broker.claim({ ...request, limit: 2 })
    expect(claim.tasks.map(({ id, attempt }) => [id, attempt])).toEqual([
      ['a', 1],
      ['b', 1],
    ])
    expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 1, running: 2 })
  })

  test('reserves for the caller, and goes on with that', async () => {
    await broker.enqueue([task('a')])
    await broker.cancel([{ id: 'a', kind: 'sum', record: '{}', endedAt: 0, expiresAt: null }])
    let token: string | null = null
    for (let i = 0; i < 2; i++) {
      proxy.loseNextAnswer()
      ;[token = null] = await broker.reserve([{ id: 'a', token }], 30_000)
      expect(token).toBeString()
    }
    const history = { calls: 0, steps: 0, order: '' }
    expect(await broker.retry([{ ...task('a'), history, ended: null, token: token ?? '' }])).toEqual(['a'])
  })

  test('settles once, and claims once what comes next', async () => {
    await broker.enqueue(['a', 'b'].map(task))
    const [a] = (await broker.claim({ ...request, limit: 1 })).tasks
    proxy.loseNextAnswer()
    const outcome = {
      type: 'end',
      state: 'succeeded',
      record: '{"result":"3","status_code":200}',
      endedAt: 0,
      expiresAt: null,
    } as const
    const { next } = await broker.settle([{ ...outcome, id: 'a', kind: 'sum', token: a?.token ?? '' }], request)
    expect(next?.tasks.map(({ id }) => id)).toEqual(['b'])
    expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 0, running: 1, succeeded: 1 })
  })
})

test('a Redis that is away makes every call fail with StoreUnavailable, without a payload in it, until it is back', async () => {
  const server = await startRedis({ args: ['--appendonly', 'yes', '--appendfsync', 'always'] })
  const broker = createRedisBroker(createTcpClient({ url: server.url }), { resendAfterMs: [1] })
  await broker.enqueue([task('kept')])
  await server.kill('SIGSTOP')
  await server.kill('SIGCONT')
  await server.stop()
  const error = await broker.enqueue([task('lost')]).then(
    () => null,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(StoreUnavailable)
  expect(String(error)).toStartWith(`StoreUnavailable: Redis at 127.0.0.1:${server.port} did not answer to enqueue: `)
  expect(JSON.stringify(error)).not.toContain('num1')
  await broker.close()
})

test('a claim after a silence longer than a lease takes tasks for a whole lease', async () => {
  let time = 1_700_000_000_000
  let away = true
  const client = createTcpClient({ url: redisTestUrl() })
  const options = { now: () => time, namespace: randomNamespace(), resendAfterMs: [] }
  const one = createRedisBroker(
    { ...client, eval: (...call) => (away ? Promise.reject(new AnswerLost('nothing')) : client.eval(...call)) },
    options,
  )
  const other = createRedisBroker(createTcpClient({ url: redisTestUrl() }), options)
  await expect(one.claim(request)).rejects.toBeInstanceOf(StoreUnavailable)
  time += request.leaseMs + 1
  away = false
  await other.enqueue([task('a')])
  expect((await one.claim(request)).tasks).toMatchObject([{ id: 'a', attempt: 1 }])
  expect((await other.claim({ ...request, takeBack: true })).tasks).toEqual([])
  await one.close()
  await other.close()
})

test('no answer grows over about a megabyte, and none is missing', async () => {
  const client = createTcpClient({ url: redisTestUrl() })
  const sizes: number[] = []
  const broker = createRedisBroker(
    {
      ...client,
      async eval(...call) {
        const reply = await client.eval(...call)
        sizes.push(JSON.stringify(reply).length)
        return reply
      },
    },
    { namespace: randomNamespace() },
  )
  const ids = Array.from({ length: 30 }, (_, i) => `large-${i}`)
  const large = 'x'.repeat(150_000)
  for (const id of ids)
    await broker.enqueue([{ ...task(id), envelope: encodeEnvelope({ task_id: id, payload: large }) }])
  expect((await broker.get(ids)).map((stored) => stored?.live?.envelope.length)).toEqual(
    ids.map((id) => encodeEnvelope({ task_id: id, payload: large }).length),
  )
  const claimed: string[] = []
  while (claimed.length < ids.length) {
    const { tasks } = await broker.claim({ ...request, limit: 60 })
    expect(tasks.length).toBeGreaterThan(0)
    claimed.push(...tasks.map(({ id }) => id))
    await broker.settle(
      tasks.map(({ id, kind, token }) => ({
        ...{ type: 'end', state: 'succeeded', id, kind, token, endedAt: 0, expiresAt: 1 },
        record: JSON.stringify({ result: large, status_code: 200 }),
      })),
    )
  }
  expect(claimed).toEqual(ids)
  const expired = new Set<string>()
  while (expired.size < ids.length) {
    const swept = await broker.sweep(60)
    expect(swept.expired.length).toBeGreaterThan(0)
    for (const stored of await broker.get(swept.expired)) expect(stored?.record?.length).toBeGreaterThan(large.length)
    for (const id of swept.expired) expired.add(id)
    const ended = { kind: 'sum', state: 'succeeded', at: 0, expiresAt: 1 } as const
    await broker.remove(swept.expired.map((id) => ({ id, ended })))
  }
  expect(Math.max(...sizes)).toBeLessThan(1_200_000)
  await broker.close()
})

test('a partition that is away keeps nothing of the others from being claimed, settled and swept', async () => {
  const client = createTcpClient({ url: redisTestUrl() })
  let away = false
  const broker = createRedisBroker(
    {
      ...client,
      eval: (script, keys, args) =>
        away && keys[0]?.includes('{1}:') ? Promise.reject(new AnswerLost('nothing')) : client.eval(script, keys, args),
    },
    { namespace: randomNamespace(), partitions: 3, resendAfterMs: [] },
  )
  const ids = Array.from({ length: 60 }, (_, i) => `task-${i}`)
  const reachable = ids.filter((id) => partitionOf(id, 3) !== 1)
  await broker.enqueue(ids.map(task))
  away = true
  const run: string[] = []
  while (run.length < reachable.length) {
    const { tasks } = await broker.claim({ ...request, limit: 7 })
    expect(tasks.every(({ attempt }) => attempt === 1)).toBe(true)
    run.push(...tasks.map(({ id }) => id))
    const end = {
      type: 'end',
      state: 'succeeded',
      record: '{"result":"","status_code":200}',
      endedAt: 0,
      expiresAt: 1,
    } as const
    const { refused, next } = await broker.settle(
      tasks.map(({ id, kind, token }) => ({ ...end, id, kind, token })),
      { ...request, limit: 0 },
    )
    expect([refused, next]).toEqual([[], { tasks: [], nextDueAt: null }])
  }
  expect(run.toSorted()).toEqual(reachable.toSorted())
  await expect(broker.claim(request)).rejects.toBeInstanceOf(StoreUnavailable)
  expect((await broker.sweep(100)).expired.toSorted()).toEqual(reachable.toSorted())
  away = false
  expect((await broker.claim({ ...request, limit: 60 })).tasks).toHaveLength(60 - reachable.length)
  await broker.close()
})

test('what falls due, is listed and is kept by a heartbeat is read a megabyte at a time, when it is large', async () => {
  const client = createTcpClient({ url: redisTestUrl() })
  const calls: string[] = []
  const sizes: number[] = []
  const counting: typeof client = {
    ...client,
    async eval(script, ...call) {
      calls.push(script.name)
      const reply = await client.eval(script, ...call)
      sizes.push(JSON.stringify(reply).length)
      return reply
    },
  }
  let time = 0
  const broker = createRedisBroker(counting, { namespace: randomNamespace(), now: () => time })
  const ids = Array.from({ length: 30 }, (_, i) => `large-${i}`)
  const payload = 'x'.repeat(150_000)
  for (const id of ids) await broker.enqueue([{ ...task(id), envelope: encodeEnvelope({ task_id: id, payload }) }])
  expect(await broker.list({ kind: 'sum', state: 'queued', after: [], limit: 200 })).not.toHaveLength(30)
  const claimed: Lease[] = []
  while (claimed.length < 30) claimed.push(...(await broker.claim({ ...request, limit: 60 })).tasks)
  calls.length = 0
  expect(await broker.extend(claimed, 30_000)).toEqual({ lost: [], cancelled: [] })
  // Nothing is read of them.
  expect(calls.length).toBe(1)
  calls.length = 0
  const telling = claimed.map((lease) => ({ ...lease, progress: { done: 1, total: 2 } }))
  expect(await broker.extend(telling, 30_000)).toEqual({ lost: [], cancelled: [] })
  expect(calls.length).toBeGreaterThanOrEqual(5)
  expect((await broker.get([claimed.at(-1)?.id ?? '']))[0]?.live?.progress).toEqual({ done: 1, total: 2 })
  time = 30_000
  calls.length = 0
  for (let back = 0; back < 30; ) back += (await broker.claim({ ...request, limit: 60, takeBack: true })).tasks.length
  expect(calls.length).toBeGreaterThanOrEqual(5)
  expect(Math.max(...sizes)).toBeLessThan(1_200_000)
  await broker.close()
})

test('a Redis that refuses says why, without the command', async () => {
  const server = await startRedis({ args: ['--maxmemory', '1kb', '--maxmemory-policy', 'noeviction'] })
  const broker = createRedisBroker(createTcpClient({ url: server.url }))
  const error = await broker.enqueue([task('secret-payload')]).catch((reason: unknown) => reason)
  expect(error).toBeInstanceOf(StoreUnavailable)
  expect(String(error)).toContain('OOM')
  expect(String(error)).not.toContain('secret-payload')
  await broker.close()
  await server.stop()
})

test('a full Redis takes no new task, and lets those that are there be run and settled', async () => {
  const server = await startRedis()
  let time = Date.now()
  const broker = createRedisBroker(createTcpClient({ url: server.url }), { now: () => time })
  const redis = new Redis(server.url)
  await broker.enqueue(['a', 'b', 'c'].map(task))
  await redis.config('SET', 'maxmemory-policy', 'noeviction')
  await redis.config('SET', 'maxmemory', '1')
  const error = await broker.enqueue([task('refused')]).catch((reason: unknown) => reason)
  expect(String(error)).toStartWith(
    `StoreUnavailable: Redis at 127.0.0.1:${server.port} refused to enqueue: it is full (OOM)`,
  )
  const { ran } = await createWorker({ broker, implementations: [sum], keyring: null, log: silentLog }).drain()
  expect(ran).toBe(3)
  expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 0, running: 0, succeeded: 3 })
  expect(await broker.get(['refused'])).toEqual([null])
  time = Date.now() + DEFAULT_RETENTION_S * 1_000 + 10
  expect(await sweepOnce({ broker, contracts: {}, now: () => time }, 10)).toEqual({ expired: 3, adopted: 0 })
  expect(await redis.exists('tasks', 'tasks:expiry')).toBe(0)
  redis.disconnect()
  await broker.close()
  await server.stop()
})

test('a full Redis takes no children, and the results of others do not wait for that', async () => {
  const server = await startRedis()
  const broker = createRedisBroker(createTcpClient({ url: server.url }))
  const redis = new Redis(server.url)
  const envelope = encodeEnvelope({ task_id: 'parent', kind: 'sequence', payload: { n: 3 } })
  await broker.enqueue([{ id: 'parent', kind: 'sequence', priority: 'high', fresh: true, envelope }])
  await broker.enqueue(['a', 'b', 'c'].map(task))
  await redis.config('SET', 'maxmemory-policy', 'noeviction')
  await redis.config('SET', 'maxmemory', '1')
  const refusals: unknown[] = []
  const log = { ...silentLog, warn: (...line: unknown[]) => void refusals.push(line) }
  const worker = createWorker({ broker, log, implementations: [sequence, sum], keyring: null, concurrency: 1 })
  const stop = new AbortController()
  const working = worker.loop(stop.signal)
  while ((await redis.hlen('tasks')) < 3) await redis.ping()
  expect(JSON.stringify(refusals)).toContain('OOM')
  expect((await broker.stats(['sequence', 'sum'])).map(({ running, succeeded }) => [running, succeeded])).toEqual([
    [1, 0],
    [0, 3],
  ])
  await redis.config('SET', 'maxmemory', '0')
  while ((await redis.hexists('tasks', 'parent')) === 0) await redis.ping()
  expect(JSON.parse((await redis.hget('tasks', 'parent')) ?? '')).toMatchObject({ result: '6', attempt: 1 })
  stop.abort()
  await working
  redis.disconnect()
  await broker.close()
  await server.stop()
})

test('a full Redis lets leases be kept and tasks be cancelled', async () => {
  const server = await startRedis()
  let time = Date.now()
  const broker = createRedisBroker(createTcpClient({ url: server.url }), { now: () => time })
  const redis = new Redis(server.url)
  await broker.enqueue([task('a')])
  const [{ token = '' } = {}] = (await broker.claim(request)).tasks
  await redis.config('SET', 'maxmemory-policy', 'noeviction')
  await redis.config('SET', 'maxmemory', '1')
  for (let beat = 1; beat <= 4; beat++) {
    time += request.leaseMs / 2
    const lease = { id: 'a', kind: 'sum', token, progress: { done: beat, total: 4 } }
    expect(await broker.extend([lease], request.leaseMs)).toEqual({ lost: [], cancelled: [] })
  }
  expect((await broker.claim({ ...request, takeBack: true })).tasks).toEqual([])
  expect((await broker.get(['a']))[0]?.live).toMatchObject({ attempts: 0, progress: { done: 4, total: 4 } })
  const record = '{"result":"","status_code":499,"status":"cancelled"}'
  const cancelled = await broker.cancel([{ id: 'a', kind: 'sum', record, endedAt: time, expiresAt: null }])
  expect(cancelled).toMatchObject([{ id: 'a', cancelled: true }])
  expect((await broker.extend([{ id: 'a', kind: 'sum', token }], request.leaseMs)).cancelled).toEqual(['a'])
  redis.disconnect()
  await broker.close()
  await server.stop()
})

test('a Redis that does not answer in time refuses, and does what it was told once when it wakes up', async () => {
  const server = await startRedis()
  const broker = createRedisBroker(createTcpClient({ url: server.url, commandTimeoutMs: 100 }), { resendAfterMs: [] })
  await broker.enqueue([task('before')])
  await server.kill('SIGSTOP')
  await expect(broker.enqueue([task('late')])).rejects.toBeInstanceOf(StoreUnavailable)
  await server.kill('SIGCONT')
  await broker.enqueue([{ ...task('late'), fresh: false }])
  expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 2 })
  await broker.close()
  await server.stop()
})
