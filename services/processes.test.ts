import { afterEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { countWrites } from '#shared/test/monitor.ts'
import { endProcesses, freePort, startProcess, type TestProcess } from '#shared/test/process.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { startTcpProxy } from '#shared/test/tcp-proxy.ts'

interface Task {
  task_id: string
  status: string
  result: unknown
  children: { total: number; done: number }
}

const BROKEN_WORKER = Bun.fileURLToPath(new URL('../shared/test/broken-worker.ts', import.meta.url))
const BLOCKING_WORKER = Bun.fileURLToPath(new URL('../shared/test/blocking-worker.ts', import.meta.url))

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  await endProcesses()
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function tempDir(): string {
  const dir = mkdtempSync(join(tmpdir(), 'tasker-test-'))
  cleanups.push(() => rmSync(dir, { recursive: true }))
  return dir
}

async function ports() {
  const [creator, manager] = [await freePort(), await freePort()]
  return {
    env: { CREATOR_PORT: String(creator), MANAGER_PORT: String(manager), LOG_LEVEL: 'info' },
    creator: `http://127.0.0.1:${creator}`,
    manager: `http://127.0.0.1:${manager}`,
  }
}

async function post(creator: string, path: string, body: unknown): Promise<Response> {
  return fetch(`${creator}${path}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  })
}
async function create(creator: string, path: string, body: unknown): Promise<string> {
  const response = await post(creator, path, body)
  expect(response.status).toBe(201)
  return ((await response.json()) as Task).task_id
}
async function get(manager: string, id: string, wait = 0): Promise<Task> {
  const response = await fetch(`${manager}/task/${id}?wait=${wait}`)
  expect(response.status).toBe(200)
  return (await response.json()) as Task
}
/** Asks until it is so; each question is a real round trip. */
async function until(manager: string, id: string, so: (task: Task) => boolean): Promise<Task> {
  for (;;) {
    const task = await get(manager, id)
    if (so(task)) return task
  }
}
async function succeededSums(manager: string): Promise<number> {
  const { kinds } = (await (await fetch(`${manager}/stats`)).json()) as { kinds: { kind: string; succeeded: number }[] }
  return kinds.find(({ kind }) => kind === 'sum')?.succeeded ?? -1
}
const total = (n: number) => (n * (n + 1)) / 2

describe('everything in one process on SQLite', () => {
  test('survives kill -9 in the middle of a sequence', async () => {
    const { env, creator, manager } = await ports()
    const settings = { ...env, TASKER_DB: join(tempDir(), 'tasker.db'), TASKER_LEASE_MS: '500' }
    const n = 5_000
    const first = startProcess('services/dev.ts', settings)
    await first.prints('Working.')
    const id = await create(creator, '/sequence', { n })
    await until(manager, id, ({ children }) => children.done > 100)
    first.kill('SIGKILL')
    expect(await first.ended).toBe('SIGKILL')

    const second = startProcess('services/dev.ts', settings)
    await second.prints('Working.')
    expect((await get(manager, id)).status).not.toBe('succeeded')
    expect(await get(manager, id, 30)).toMatchObject({
      status: 'succeeded',
      result: total(n),
      children: { total: n, done: n },
    })
    expect(await succeededSums(manager)).toBe(n)
    second.kill('SIGTERM')
    expect(await second.ended).toBe(0)
  }, 60_000)

  test.each(['SIGINT', 'SIGHUP'] as const)(
    'stops cleanly on %s, and keeps what was queued',
    async (signal) => {
      const { env, creator, manager } = await ports()
      const settings = { ...env, TASKER_DB: join(tempDir(), 'tasker.db'), WORKER_KINDS: 'sum' }
      const first = startProcess('services/dev.ts', settings)
      await first.prints('Working.')
      const id = await create(creator, '/sequence', { n: 2 })
      first.kill(signal)
      expect(await first.ended).toBe(0)
      const second = startProcess('services/dev.ts', { ...settings, WORKER_KINDS: '' })
      await second.prints('Working.')
      expect(await get(manager, id, 10)).toMatchObject({ result: 3 })
    },
    30_000,
  )

  test.each(['SIGTERM', 'SIGHUP'] as const)(
    'a worker gives back on %s what it has not ended, and that is no attempt',
    async (signal) => {
      const asked = Promise.withResolvers<void>()
      const provider = Bun.serve({
        ...{ port: 0, hostname: '127.0.0.1' },
        fetch() {
          asked.resolve()
          return new Promise<Response>(() => {})
        },
      })
      cleanups.push(() => provider.stop(true))
      const { env, creator, manager } = await ports()
      const settings = { ...env, TASKER_DB: join(tempDir(), 'tasker.db') }
      const services = startProcess('services/dev.ts', { ...settings, WORKER_KINDS: 'sum' })
      await services.prints('Working.')
      const worker = startProcess('services/workers/chat/main.ts', {
        ...{ ...settings, WORKER_GRACE_MS: '0', OPENAI_BASE_URL: `http://127.0.0.1:${provider.port}/v1` },
      })
      await worker.prints('Working.')
      const id = await create(creator, '/chat', { question: 'Why?', api_key: 'sk-hanging' })
      await asked.promise
      worker.kill(signal)
      expect(await worker.ended).toBe(0)
      expect(await get(manager, id)).toMatchObject({ status: 'queued', attempts: [] })
    },
    30_000,
  )

  test('says in one line that a port is busy, or a setting wrong, and exits with 1', async () => {
    const busy = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response() })
    cleanups.push(() => busy.stop(true))
    const db = join(tempDir(), 'tasker.db')
    const onBusy = startProcess('services/dev.ts', { CREATOR_PORT: String(busy.port), TASKER_DB: db })
    expect(await onBusy.ended).toBe(1)
    expect(onBusy.output().trim().split('\n')).toEqual([expect.stringContaining('in use')])
    const wrong = startProcess('services/dev.ts', { CREATOR_PORT: 'x', TASKER_DB: db })
    expect(await wrong.ended).toBe(1)
    expect(wrong.output().trim().split('\n')).toEqual([expect.stringContaining('CREATOR_PORT')])
    const unknown = startProcess('services/dev.ts', { WORKER_KINDS: 'sum,nope', TASKER_DB: db })
    expect(await unknown.ended).toBe(1)
    expect(unknown.output().trim().split('\n')).toEqual([expect.stringContaining('nope')])
  }, 30_000)
})

describe('a process for each service on Redis', () => {
  /** Starts a Redis, the two services and a worker for each of the kinds. */
  async function fleet(kinds: string[], options: { redisArgs?: string[]; port?: number } = {}) {
    const dir = tempDir()
    const redis = await startRedis({ dir, args: options.redisArgs ?? [] })
    cleanups.push(() => redis.stop())
    const { env, creator, manager } = await ports()
    const settings = { ...env, REDIS_URL: redis.url, TASKER_LEASE_MS: '1000' }
    const services = [
      startProcess('services/creator/main.ts', settings),
      startProcess('services/manager/main.ts', settings),
    ]
    await Promise.all(services.map((service) => service.prints('Listening.')))
    const worker = async (kind: string) => {
      const started = startProcess(`services/workers/${kind}/main.ts`, settings)
      await started.prints('Working.')
      return started
    }
    const workers = new Map<string, TestProcess>()
    for (const kind of kinds) workers.set(kind, await worker(kind))
    return { dir, redis, creator, manager, worker, workers }
  }

  test('a worker that is killed, and one that sleeps over its lease, neither lose nor repeat a sum', async () => {
    const { redis, creator, manager, worker, workers } = await fleet(['sequence', 'sum'])
    const commits = await countWrites(redis.url, 'tasks')
    cleanups.push(() => commits.close())
    const n = 20_000
    const id = await create(creator, '/sequence', { n })
    const stats = new Redis(redis.url)
    cleanups.push(() => stats.disconnect())
    const running = () => stats.zcard('sum_task_queue:running')

    // Killed while it holds tasks.
    const victim = workers.get('sum')
    while ((await running()) === 0) await stats.ping()
    victim?.kill('SIGSTOP')
    await until(manager, id, ({ children }) => children.total > 0)
    victim?.kill('SIGKILL')

    // Stopped while it holds tasks, until they were run by another; then it wakes up.
    const sleeper = await worker('sum')
    let held = 0
    while (held === 0) {
      sleeper.kill('SIGCONT')
      await stats.ping()
      sleeper.kill('SIGSTOP')
      held = await running()
    }
    await worker('sum')
    const done = await get(manager, id, 60)
    sleeper.kill('SIGCONT')
    expect(done).toMatchObject({ status: 'succeeded', result: total(n), children: { total: n, done: n } })
    sleeper.kill('SIGTERM')
    expect(await sleeper.ended).toBe(0)
    expect(await succeededSums(manager)).toBe(n)
    await commits.caughtUp()
    expect([...commits.writes.values()].filter((count) => count !== 1)).toEqual([])
    expect(commits.writes.size).toBe(n + 1)
  }, 90_000)

  test('a process that a handler blocks ends after a lease, and what else it had claimed is run by another', async () => {
    const redis = await startRedis()
    cleanups.push(() => redis.stop())
    const client = new Redis(redis.url)
    cleanups.push(() => client.disconnect())
    const ids = Array.from({ length: 20 }, (_, n) => `sum-${n}`)
    for (const id of ids) await client.lpush('sum_task_queue', `{"task_id":"${id}","payload":{"num1":1,"num2":2}}`)
    // Taken first, in the same claim as the sums.
    await client.lpush('block_task_queue:high', '{"task_id":"blocks","payload":{}}')
    const settings = { REDIS_URL: redis.url, TASKER_LEASE_MS: '1000' }
    const blocked = startProcess(BLOCKING_WORKER, settings)
    await blocked.prints('Blocked.')
    const held = (await client.hkeys('tasks:live')).filter((field) => field.endsWith('\n'))
    expect(held).toHaveLength(ids.length + 1)
    expect(await client.hlen('tasks')).toBe(0)

    await startProcess('services/workers/sum/main.ts', settings).prints('Working.')
    while ((await client.hlen('tasks')) < ids.length) await client.ping()
    const records = (await client.hmget('tasks', ...ids)).map((record) => JSON.parse(record ?? 'null'))
    for (const record of records) expect(record).toMatchObject({ result: '3', status_code: 200, attempt: 2 })
    expect(await blocked.ended).toBe('SIGKILL')
    expect(blocked.output()).toContain('A handler has blocked this process')
  }, 30_000)

  test('a worker that meets an error nobody foresaw ends with a code, whatever would keep it alive, and others go on', async () => {
    const redis = await startRedis()
    cleanups.push(() => redis.stop())
    const client = new Redis(redis.url)
    cleanups.push(() => client.disconnect())
    await client.lpush('sum_task_queue', '{"task_id":"one","payload":{"num1":1,"num2":2}}')
    const settings = { REDIS_URL: redis.url, TASKER_LEASE_MS: '1000', LOG_LEVEL: 'info' }
    const broken = startProcess(BROKEN_WORKER, settings)
    await broken.prints('Broken.')
    const began = performance.now()
    expect(await broken.ended).toBe(1)
    expect(performance.now() - began).toBeLessThan(1_500)
    await startProcess('services/workers/sum/main.ts', settings).prints('Working.')
    while ((await client.hlen('tasks')) < 1) await client.ping()
    expect(JSON.parse((await client.hget('tasks', 'one')) ?? '')).toMatchObject({ result: '3', attempt: 2 })
  }, 30_000)

  test('Redis away: 503 and nothing accepted, and everybody goes on by themselves when it is back', async () => {
    const durable = ['--appendonly', 'yes', '--appendfsync', 'always']
    const { dir, redis, creator, manager } = await fleet(['sum'], { redisArgs: durable })
    const before = await create(creator, '/sum', { num1: 1, num2: 2 })
    expect((await get(manager, before, 10)).result).toBe(3)
    const queued = await create(creator, '/sequence', { n: 1 })
    await redis.kill('SIGKILL')
    const refused = await post(creator, '/sum', { num1: 3, num2: 4 })
    expect(refused.status).toBe(503)
    expect(refused.headers.get('Retry-After')).not.toBeNull()
    expect((await fetch(`${manager}/task/${before}`)).status).toBe(503)
    expect((await fetch(`${creator}/readyz`)).status).toBe(503)
    expect((await fetch(`${creator}/healthz`)).status).toBe(200)

    const again = await startRedis({ dir, port: redis.port, args: durable })
    cleanups.push(() => again.stop())
    let response = await post(creator, '/sum', { num1: 5, num2: 6 })
    while (response.status === 503) response = await post(creator, '/sum', { num1: 5, num2: 6 })
    const after = ((await response.json()) as Task).task_id
    // Each process finds back to Redis in its own time.
    while (!(await fetch(`${manager}/readyz`)).ok);
    expect((await get(manager, after, 20)).result).toBe(11)
    expect((await get(manager, queued)).status).toBe('queued')
    // Nothing of the refused one: the two before and the one after.
    expect(await succeededSums(manager)).toBe(2)
  }, 60_000)

  test('a sequence of 100,000 stays below 300 MB, and no call over 1 MiB', async () => {
    const { redis, creator, manager } = await fleet([])
    const proxy = await startTcpProxy(redis)
    cleanups.push(() => proxy.close())
    const one = startProcess('services/workers/main.ts', {
      ...{ REDIS_URL: `redis://127.0.0.1:${proxy.port}`, WORKER_KINDS: 'sum,sequence' },
    })
    await one.prints('Working.')
    const n = 100_000
    const id = await create(creator, '/sequence', { n })
    expect(await get(manager, id, 60)).toMatchObject({ status: 'succeeded', result: total(n) })
    const peakKb = Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${one.pid}/status`, 'utf8'))?.[1])
    expect(peakKb).toBeLessThan(300_000)
    expect(proxy.largestCall).toBeLessThan(1_048_576)
  }, 90_000)

  test('a worker with one slot for both kinds does not deadlock', async () => {
    const { redis, creator, manager } = await fleet([])
    const one = startProcess('services/workers/main.ts', {
      ...{ REDIS_URL: redis.url, WORKER_KINDS: 'sum,sequence', WORKER_CONCURRENCY: '1' },
    })
    await one.prints('Working.')
    const id = await create(creator, '/sequence', { n: 20 })
    expect((await get(manager, id, 20)).result).toBe(210)
  }, 30_000)
})
