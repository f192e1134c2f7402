import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LLMock } from '@copilotkit/aimock'
import { Miniflare } from 'miniflare'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { newKey } from '#shared/runtime/seal.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { endProcesses, freePort, startProcess, type TestProcess } from '#shared/test/process.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import { type RestEndpoint, startRestEndpoint } from '#shared/test/rest-endpoint.ts'
import { runtimes } from '#shared/test/runtimes.ts'

const KINDS = ['sum', 'chat', 'sequence', 'conversation'] as const
const ENTRIES = ['creator', 'manager', ...KINDS.map((kind) => `workers/${kind}`)]
const GOAL_BYTES = 200_000
const DRAIN_TOKEN = 'drain-token'
const BLOCKING_WORKER = Bun.fileURLToPath(new URL('../shared/test/blocking-worker.ts', import.meta.url))
const BROKEN_WORKER = Bun.fileURLToPath(new URL('../shared/test/broken-worker.ts', import.meta.url))
const STRAY_WORKER = Bun.fileURLToPath(new URL('../shared/test/stray-worker.ts', import.meta.url))

interface Task {
  task_id: string
  status: string
  result: unknown
  children: { total: number; done: number }
}

/** Where the services of one runtime are. */
interface Fleet {
  creator: string
  manager: string
  workers: Record<string, string>
}

const dir = mkdtempSync(join(tmpdir(), 'tasker-edge-'))
const bundles = new Map<string, string>()
const model = new LLMock({ port: 0 })
const secret = newKey()
let redis: RedisServer
let rest: RestEndpoint
let miniflare: Miniflare | undefined

beforeAll(async () => {
  redis = await startRedis()
  rest = await startRestEndpoint(redis.url)
  await model.start()
  model.onMessage(/./, { content: 'An answer.' })
  for (const entry of ENTRIES) {
    const { outputs } = await Bun.build({
      entrypoints: [join(import.meta.dir, entry, 'edge.ts')],
      target: 'browser',
      minify: true,
    })
    bundles.set(entry, (await outputs[0]?.text()) ?? '')
  }
}, 60_000)

afterAll(async () => {
  await miniflare?.dispose()
  await endProcesses()
  await model.stop()
  await rest.stop()
  await redis.stop()
  rmSync(dir, { recursive: true })
})

describe('bundles for the edge', () => {
  test.each(ENTRIES)('%s has no driver but REST in it', (entry) => {
    const bundle = bundles.get(entry) ?? ''
    console.log(`${entry}: ${Math.round(bundle.length / 1000)} KB minified (goal: ${GOAL_BYTES / 1000} KB)`)
    expect(bundle).toContain('tasks:live')
    for (const driver of ['ioredis', 'bun:sqlite', 'node:net', 'node:fs']) expect(bundle).not.toContain(driver)
  })
})

function settings(fleet: Fleet): Record<string, string> {
  return {
    UPSTASH_REDIS_REST_URL: rest.url,
    UPSTASH_REDIS_REST_TOKEN: rest.token,
    MANAGER_URL: fleet.manager,
    TASKER_SECRET: secret,
    TASKER_OPEN: '1',
    DRAIN_TOKEN,
    WORKER_URLS: Object.entries(fleet.workers)
      .map(([kind, url]) => `${kind}=${url}`)
      .join(','),
    OPENAI_BASE_URL: `${model.url}/v1`,
    LOG_LEVEL: 'warn',
  }
}

async function plan(): Promise<Fleet> {
  const url = async () => `http://127.0.0.1:${await freePort()}`
  const workers = Object.fromEntries(await Promise.all(KINDS.map(async (kind) => [kind, await url()] as const)))
  return { creator: await url(), manager: await url(), workers }
}

const places = (fleet: Fleet) => [
  { entry: 'creator', url: fleet.creator },
  { entry: 'manager', url: fleet.manager },
  ...Object.entries(fleet.workers).map(([kind, url]) => ({ entry: `workers/${kind}`, url })),
]

/** All services in workerd, each with a port of its own. */
async function onWorkerd(): Promise<Fleet> {
  const fleet = await plan()
  miniflare = new Miniflare({
    cf: false,
    workers: places(fleet).map(({ entry, url }) => ({
      name: entry.replace('/', '-'),
      modules: true,
      script: bundles.get(entry) ?? '',
      compatibilityDate: '2026-01-01',
      bindings: settings(fleet),
      unsafeDirectSockets: [{ host: '127.0.0.1', port: Number(new URL(url).port) }],
    })),
  })
  await miniflare.ready
  return fleet
}

/** All services on Deno, unbuilt. */
async function onDeno(): Promise<Fleet> {
  const fleet = await plan()
  const [deno] = runtimes.find(({ name }) => name === 'Deno')?.command ?? []
  if (!deno) throw new Error('There is no Deno for this platform in node_modules: run npm test, which installs it.')
  await Promise.all(
    places(fleet).map(async ({ entry, url }) => {
      const args = ['serve', '--no-check', '-A', '--node-modules-dir=manual', '--host', '127.0.0.1']
      const command = [deno, ...args, '--port', new URL(url).port, `services/${entry}/edge.ts`]
      await startProcess(command, settings(fleet)).prints('istening on')
    }),
  )
  return fleet
}

async function create({ creator }: Fleet, kind: string, payload: unknown): Promise<string> {
  const response = await fetch(`${creator}/${kind}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ payload }),
  })
  expect(response.status).toBe(201)
  return ((await response.json()) as Task).task_id
}

async function read({ manager }: Fleet, id: string, wait = 20): Promise<Task> {
  const response = await fetch(`${manager}/task/${id}?wait=${wait}`)
  expect(response.status).toBe(200)
  return (await response.json()) as Task
}

async function drain(fleet: Fleet, kind: string, token = DRAIN_TOKEN): Promise<Response> {
  return fetch(`${fleet.workers[kind]}/drain`, { method: 'POST', headers: { Authorization: `Bearer ${token}` } })
}

const edges = { workerd: onWorkerd, Deno: onDeno }
const fleets: Partial<Record<keyof typeof edges, Fleet>> = {}

describe.each(['workerd', 'Deno'] as const)('on %s', (runtime) => {
  beforeAll(async () => {
    fleets[runtime] = await edges[runtime]()
  }, 60_000)
  const fleet = () => fleets[runtime] as Fleet

  test('creator, manager and a worker that is drained run a task', async () => {
    const id = await create(fleet(), 'sum', { num1: 5, num2: 7 })
    const drained = await drain(fleet(), 'sum')
    expect(drained.status).toBe(200)
    expect(await read(fleet(), id)).toMatchObject({ status: 'succeeded', result: 12 })
  }, 30_000)

  test('a drain needs its token', async () => {
    const response = await drain(fleet(), 'sum', 'wrong')
    expect(response.status).toBe(401)
    expect(response.headers.get('WWW-Authenticate')).toContain('Bearer')
  })

  test('a sequence of 50 runs wholly in invocations that wake each other', async () => {
    const id = await create(fleet(), 'sequence', { n: 50 })
    expect(await read(fleet(), id, 60)).toMatchObject({
      ...{ status: 'succeeded', result: 1275 },
      children: { total: 50, done: 50 },
    })
  }, 60_000)

  test('a conversation of 3 runs wholly in invocations that wake each other', async () => {
    const id = await create(fleet(), 'conversation', { topic: 'the edge', n: 3, api_key: 'sk-edge' })
    const task = await read(fleet(), id, 60)
    expect(task).toMatchObject({ status: 'succeeded', children: { total: 3, done: 3 } })
    expect(task.result).toBe(['What is interesting about the edge?', ...Array(3).fill('An answer.')].join('\n'))
  }, 60_000)

  test('a service that is not set up answers 500 and does not say what is missing', async () => {
    const { default: edge } = await import('#services/manager/edge.ts')
    const response = await edge.fetch(new Request('http://manager/'), { UPSTASH_REDIS_REST_URL: 'not a url' })
    expect(response.status).toBe(500)
    expect(await response.text()).not.toContain('UPSTASH')
  })
})

describe('an edge service without tokens', () => {
  const ask = async (service: 'creator' | 'manager', path: string, env: Record<string, string>) => {
    const { default: edge } = await import(`#services/${service}/edge.ts`)
    const { TASKER_OPEN: _, ...others } = settings({ creator: '', manager: 'http://manager', workers: {} })
    return (await edge.fetch(new Request(`http://${service}${path}`), { ...others, ...env })) as Response
  }

  test.each(['creator', 'manager'] as const)(
    '%s refuses all but /healthz, unless it is meant to be open',
    async (service) => {
      const lines = spyOn(console, 'log').mockImplementation(() => {})
      try {
        for (const path of ['/', '/readyz', '/tasks', '/nope']) {
          const refused = await ask(service, path, {})
          expect(refused.status).toBe(503)
          expect(refused.headers.get('Content-Type')).toBe('application/problem+json')
          expect(await refused.text()).not.toContain('TASKER')
        }
        expect(String(lines.mock.lastCall)).toMatch(/TASKER_TOKENS.*TASKER_OPEN/)
      } finally {
        lines.mockRestore()
      }
      expect((await ask(service, '/healthz', {})).status).toBe(200)
      expect((await ask(service, '/', { TASKER_OPEN: '1' })).status).toBe(200)
      expect((await ask(service, '/', { TASKER_TOKENS: 'abc' })).status).toBe(200)
    },
  )
})

test('an edge creator that is not told where the manager is sends nobody to localhost', async () => {
  const { default: edge } = await import('#services/creator/edge.ts')
  const env = { ...settings({ creator: '', manager: '', workers: {} }), TASKER_OPEN: '1', MANAGER_URL: '' }
  const { links } = (await (await edge.fetch(new Request('https://creator.example/'), env)).json()) as {
    links: unknown
  }
  expect(links).toEqual({ health: '/healthz', ready: '/readyz' })
})

describe('across runtimes', () => {
  test('created in workerd over REST, run on Bun over TCP, read on Deno; and the other way round', async () => {
    const { workerd, Deno: deno } = fleets as Record<string, Fleet>
    if (!workerd || !deno) throw new Error('The fleets did not start.')
    const ports = { creator: await freePort(), manager: await freePort() }
    const bun: Fleet = {
      creator: `http://127.0.0.1:${ports.creator}`,
      manager: `http://127.0.0.1:${ports.manager}`,
      workers: {},
    }
    const env = {
      ...{ REDIS_URL: redis.url, TASKER_SECRET: secret, LOG_LEVEL: 'info', WORKER_KINDS: 'sum,sequence' },
      ...{ CREATOR_PORT: String(ports.creator), MANAGER_PORT: String(ports.manager) },
    }
    const services = ['services/creator/main.ts', 'services/manager/main.ts'].map((file) => startProcess(file, env))
    await Promise.all(services.map((service) => service.prints('Listening.')))

    // No edge worker takes it: it is created straight on Bun, where nobody is woken, before any worker runs there.
    const there = await create(bun, 'sum', { num1: 1, num2: 2 })
    expect((await drain(workerd, 'sum')).status).toBe(200)
    expect(await read(bun, there)).toMatchObject({ status: 'succeeded', result: 3 })
    const again = await create(bun, 'sum', { num1: 3, num2: 4 })
    expect((await drain(deno, 'sum')).status).toBe(200)
    expect(await read(workerd, again)).toMatchObject({ status: 'succeeded', result: 7 })

    const worker = startProcess('services/workers/main.ts', env)
    await worker.prints('Working.')
    const id = await create(workerd, 'sequence', { n: 200 })
    expect(await read(deno, id, 30)).toMatchObject({ status: 'succeeded', result: 20_100 })
  }, 60_000)
})

// What runs on Bun is in processes.test.ts.
for (const { name, command, missing } of runtimes.filter(({ name }) => name !== 'Bun')) {
  describe.skipIf(command === null)(`for long, on ${name}${command ? '' : missing}`, () => {
    const run = (file: string, env: Record<string, string>) => startProcess([...(command ?? []), file], env)

    async function addresses() {
      const [creator, manager] = [await freePort(), await freePort()]
      const env = { CREATOR_PORT: String(creator), MANAGER_PORT: String(manager), LOG_LEVEL: 'info' }
      const fleet: Fleet = {
        creator: `http://127.0.0.1:${creator}`,
        manager: `http://127.0.0.1:${manager}`,
        workers: {},
      }
      return { env, fleet }
    }

    async function stops(process: TestProcess, signal: NodeJS.Signals) {
      process.kill(signal)
      expect(await process.ended).toBe(0)
    }

    test('everything in one process on SQLite runs tasks, stops cleanly, and has them afterwards', async () => {
      const { env, fleet } = await addresses()
      const settings = { ...env, OPENAI_BASE_URL: `${model.url}/v1`, TASKER_DB: join(dir, name, 'tasker.db') }
      const first = run('services/dev.ts', settings)
      await first.prints('Working.')
      const sequence = await create(fleet, 'sequence', { n: 100 })
      const conversation = await create(fleet, 'conversation', { topic: 'files', n: 2, api_key: 'sk-file' })
      expect(await read(fleet, sequence)).toMatchObject({ result: 5050, children: { total: 100, done: 100 } })
      expect(await read(fleet, conversation)).toMatchObject({ status: 'succeeded', children: { total: 2, done: 2 } })
      const beside = run('services/dev.ts', { ...settings, MANAGER_PORT: String(await freePort()) })
      expect(await beside.ended).toBe(1)
      expect(beside.output().trim().split('\n')).toEqual([expect.stringContaining('in use')])
      await stops(first, 'SIGINT')

      const second = run('services/dev.ts', settings)
      await second.prints('Working.')
      for (const [id, total] of [[sequence, 100] as const, [conversation, 2] as const]) {
        expect(await read(fleet, id, 0)).toMatchObject({ status: 'succeeded', children: { total, done: total } })
      }
      await stops(second, 'SIGTERM')
    }, 60_000)

    test('a process for each service on Redis runs tasks, and stops cleanly', async () => {
      const { env, fleet } = await addresses()
      const settings = { ...env, REDIS_URL: redis.url, TASKER_SECRET: secret, OPENAI_BASE_URL: `${model.url}/v1` }
      const services = ['creator', 'manager', 'workers'].map((name) => run(`services/${name}/main.ts`, settings))
      const words = ['Listening.', 'Listening.', 'Working.']
      await Promise.all(services.map((service, n) => service.prints(words[n] ?? '')))
      const sequence = await create(fleet, 'sequence', { n: 100 })
      const conversation = await create(fleet, 'conversation', { topic: 'wires', n: 2, api_key: 'sk-wire' })
      expect(await read(fleet, sequence)).toMatchObject({ result: 5050, children: { total: 100, done: 100 } })
      expect(await read(fleet, conversation)).toMatchObject({ status: 'succeeded', children: { total: 2, done: 2 } })
      await Promise.all(services.map((service) => stops(service, 'SIGTERM')))
    }, 60_000)

    test('the REST endpoint passes on commands and messages', async () => {
      const port = String(await freePort())
      const endpoint = run('services/rest/main.ts', { REDIS_URL: redis.url, REST_PORT: port, REST_TOKEN: 'token' })
      await endpoint.prints('Listening.')
      const ask = (path: string, init: RequestInit = {}) =>
        fetch(`http://127.0.0.1:${port}${path}`, { ...init, headers: { Authorization: 'Bearer token' } })
      expect(await (await ask('/echo/word')).json()).toEqual({ result: 'word' })
      const channel = `on-${name}`
      const stream = (await ask(`/subscribe/${channel}`, { method: 'POST' })).body?.pipeThrough(new TextDecoderStream())
      const heard = stream?.getReader()
      expect((await heard?.read())?.value).toContain(`data: subscribe,${channel},1`)
      expect(await (await ask(`/publish/${channel}/hello`)).json()).toEqual({ result: 1 })
      expect((await heard?.read())?.value).toContain(`data: message,${channel},hello`)
      await stops(endpoint, 'SIGTERM')
    }, 30_000)

    test('a process that a handler blocks ends after a lease, and one whose store has a bug ends with a code', async () => {
      const settings = { TASKER_LEASE_MS: '1000', LOG_LEVEL: 'info' }
      const blocked = { ...settings, TASKER_DB: join(dir, name, 'blocked.db') }
      const broken = { ...settings, TASKER_DB: join(dir, name, 'broken.db') }
      await enqueue(blocked.TASKER_DB, 'block', {})
      await enqueue(broken.TASKER_DB, 'sum', { num1: 1, num2: 2 })
      const [first, second] = [run(BLOCKING_WORKER, blocked), run(BROKEN_WORKER, broken)]
      expect(await first.ended).toBe('SIGKILL')
      expect(first.output()).toContain('A handler has blocked this process')
      await second.prints('Broken.')
      expect(await second.ended).toBe(1)
    }, 30_000)
  })
}

for (const { name, command, missing } of runtimes) {
  describe.skipIf(command === null)(`errors left to nobody, on ${name}${command ? '' : missing}`, () => {
    test('end no process, hold up no task, change no exit code, and show no message', async () => {
      const path = join(dir, `stray-${name}.db`)
      const ids = [await enqueue(path, 'stray', { word: 'sk-stray' }), await enqueue(path, 'beside', {})]
      await enqueue(path, 'listens', { word: 'sk-stray' })
      const env = { TASKER_DB: path, LOG_LEVEL: 'info', WORKER_GRACE_MS: '0' }
      const worker = startProcess([...(command ?? []), STRAY_WORKER], env)
      await worker.prints('Listens.')
      const broker = createSqliteBroker({ path })
      const records = async () => (await broker.get(ids)).map((task) => JSON.parse(task?.record ?? 'null'))
      let isOver = false
      void worker.ended.then(() => {
        isOver = true
      })
      while (!isOver && (await records()).includes(null)) await nextTurn()
      const succeeded = { status_code: 200, attempt: 1 }
      expect(await records()).toMatchObject([succeeded, succeeded])
      await broker.close()
      worker.kill('SIGTERM')
      expect(await worker.ended).toBe(0)

      expect(worker.output()).not.toContain('sk-stray')
      const lines = worker.output().trim().split('\n')
      const errors = lines.map((line) => JSON.parse(line)).filter(({ level }) => level === 'ERROR')
      const at = expect.arrayContaining([expect.stringMatching(/stray-worker\.ts:\d+:\d+$/)])
      expect(errors[0]).toMatchObject({ message: expect.stringContaining('ctx.step'), type: 'TypeError', at })
      expect(errors.length).toBeGreaterThan(1)
    }, 30_000)
  })
}

async function enqueue(path: string, kind: string, payload: unknown): Promise<string> {
  const broker = createSqliteBroker({ path })
  const id = crypto.randomUUID()
  await broker.enqueue([{ id, kind, priority: 'normal', envelope: encodeEnvelope({ task_id: id, kind, payload }) }])
  await broker.close()
  return id
}
