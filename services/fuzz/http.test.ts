/** Every endpoint answers whatever comes: below 500, in the form of the interface, at once. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import type { Broker } from '#shared/broker/broker.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger, type Log } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { type Server, serve } from '#shared/runtime/serve.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import { type RestEndpoint, startRestEndpoint } from '#shared/test/rest-endpoint.ts'
import { stores } from '#shared/test/stores.ts'
import { createApp as createCreator } from '../creator/app.ts'
import creator from '../creator/edge.ts'
import { createApp as createManager } from '../manager/app.ts'
import manager from '../manager/edge.ts'
import chat from '../workers/chat/edge.ts'
import { contracts } from '../workers/contracts.ts'
import sum from '../workers/sum/edge.ts'
import { bounded, TIMEOUT_MS } from './arbitrary.ts'
import { ask, creationBody, edgeRequest, rawRequest, restRequest, sendBytes, serviceRequest } from './requests.ts'

const KINDS = Object.keys(contracts)

async function open(store: (typeof stores)[number]) {
  const broker: Broker = store.open({ now: Date.now })
  const errors: string[] = []
  const log: Log = createLogger('error', (line) => errors.push(line))
  const keyring = await createKeyring([newKey()])
  // Time passes as soon as somebody waits for it.
  const clock = { now: Date.now, sleep: nextTurn }
  const creator = createCreator({ broker, contracts, keyring, managerUrl: 'http://manager', log, auth: null })
  const manager = createManager({ broker, contracts, log, auth: null, clock })
  const envelope = '{"task_id":"known","v":1,"kind":"sum","payload":{"num1":1,"num2":2}}'
  await broker.enqueue([{ id: 'known', kind: 'sum', priority: 'normal', envelope }])
  return { broker, errors, apps: { creator, manager } }
}

describe.each(stores)('on $name', (store) => {
  let scene: Awaited<ReturnType<typeof open>>
  beforeAll(async () => {
    scene = await open(store)
  })
  afterAll(() => scene.broker.close())

  test.each(['creator', 'manager'] as const)(
    '%s answers whatever is asked, and nothing is an error of its own',
    async (service) => {
      const seen = new Set<number>()
      await fc.assert(
        fc.asyncProperty(serviceRequest, async (asked) => {
          const { fetch } = scene.apps[service]
          const response = await ask(asked, { fetch, url: `http://${service}`, timeoutMs: 5_000 })
          expect(scene.errors).toEqual([])
          expect(response.status).toBeLessThan(500)
          seen.add(response.status)
          expect(response.headers.get('X-Content-Type-Options')).toBe('nosniff')
          if (response.status >= 400 && asked.method !== 'HEAD' && !asked.headers['Accept']) {
            expect(response.headers.get('Content-Type')).toBe('application/problem+json')
            expect(JSON.parse(response.text)).toMatchObject({ status: response.status, type: expect.any(String) })
          }
        }),
        bounded(4),
      )
      // Else it would say nothing.
      expect([...seen]).toEqual(
        expect.arrayContaining(service === 'creator' ? [201, 400, 404, 405, 415, 422] : [200, 404, 405, 409, 422]),
      )
    },
    TIMEOUT_MS,
  )

  test(
    'what was created can be read, listed, counted and deleted',
    async () => {
      await fc.assert(
        fc.asyncProperty(fc.constantFrom(...KINDS), creationBody, async (kind, bytes) => {
          const { creator, manager } = scene.apps
          const init = {
            method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: bytes as Uint8Array<ArrayBuffer>,
          }
          const created = await creator.request(`/${kind}`, init)
          if (created.status !== 201) return expect([400, 422]).toContain(created.status)
          const { task_id } = (await created.json()) as { task_id: string }
          for (const [method, at] of [
            ['GET', `/task/${task_id}`],
            ['GET', `/tasks?kind=${kind}&limit=200`],
            ['GET', '/stats'],
            ['POST', `/task/${task_id}/cancel`],
            ['DELETE', `/task/${task_id}`],
          ] as const) {
            expect([at, (await manager.request(at, { method })).status]).toEqual([at, 200])
          }
        }),
        bounded(),
      )
    },
    TIMEOUT_MS,
  )
})

describe('over a socket', () => {
  let server: Server
  let scene: Awaited<ReturnType<typeof open>>
  beforeAll(async () => {
    scene = await open(stores[0] as (typeof stores)[number])
    server = await serve({ fetch: scene.apps.creator.fetch, host: '127.0.0.1', port: 0 })
  })
  afterAll(async () => {
    await server.stop()
    await scene.broker.close()
  })

  test(
    'no bytes stop the server',
    async () => {
      const { port } = new URL(server.url)
      await fc.assert(
        fc.asyncProperty(rawRequest, async (bytes) => {
          const answer = await sendBytes(bytes, { port: Number(port), timeoutMs: 5_000 })
          // 505 is Bun's, for versions of HTTP that there are not.
          expect(answer).not.toMatch(/^HTTP\/1\.1 5(?!05)/)
          expect((await fetch(`${server.url}/healthz`)).status).toBe(200)
        }),
        bounded(),
      )
      expect(scene.errors).toEqual([])
    },
    TIMEOUT_MS,
  )
})

describe('on a Redis of their own', () => {
  const TOKEN = 'a-token'
  let redis: RedisServer
  let rest: RestEndpoint
  beforeAll(async () => {
    redis = await startRedis()
    rest = await startRestEndpoint(redis.url)
  })
  afterAll(async () => {
    await rest.stop()
    await redis.stop()
  })

  test(
    'services and workers on the edge answer whatever is asked',
    async () => {
      const env = {
        ...{ UPSTASH_REDIS_REST_URL: rest.url, UPSTASH_REDIS_REST_TOKEN: rest.token, LOG_LEVEL: 'silent' },
        ...{ TASKER_TOKENS: TOKEN, TASKER_SECRET: newKey(), DRAIN_TOKEN: TOKEN, OPENAI_BASE_URL: 'http://127.0.0.1:9' },
      }
      const edges = { creator, manager, sum, chat }
      const seen = new Set<string>()
      await fc.assert(
        fc.asyncProperty(fc.constantFrom(...Object.keys(edges)), edgeRequest(TOKEN), async (name, asked) => {
          const later: Promise<unknown>[] = []
          const context = { waitUntil: (work: Promise<unknown>) => void later.push(work) }
          const fetch = (request: Request) => edges[name as keyof typeof edges].fetch(request, env, context)
          const { status } = await ask(asked, { fetch, url: `http://${name}`, timeoutMs: 5_000 })
          expect(status).toBeLessThan(500)
          await Promise.all(later)
          seen.add(`${name} ${status}`)
        }),
        bounded(2),
      )
      expect([...seen]).toEqual(expect.arrayContaining(['sum 200', 'sum 202', 'sum 401', 'sum 405', 'chat 200']))
    },
    TIMEOUT_MS,
  )

  test(
    'the REST endpoint answers whatever is asked',
    async () => {
      const seen = new Set<number>()
      await fc.assert(
        fc.asyncProperty(restRequest(rest.token), async (asked) => {
          const { status } = await ask(asked, { fetch, url: rest.url, timeoutMs: 5_000 })
          expect(status).toBeLessThan(500)
          seen.add(status)
        }),
        bounded(4),
      )
      expect([...seen]).toEqual(expect.arrayContaining([200, 400, 401, 404, 405]))
    },
    TIMEOUT_MS,
  )
})
