import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test'
import * as z from 'zod'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createRestClient } from '#shared/broker/redis/rest.ts'
import { createKeyring, newKey, sealPayload } from '#shared/runtime/seal.ts'
import { type Contract, defineTask } from '#shared/task/define.ts'
import { readRecord } from '#shared/task/record.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { type RestEndpoint, startRestEndpoint } from '#shared/test/rest-endpoint.ts'
import { type Implementation, implement } from '#shared/worker/implement.ts'
import { chat } from './chat/contract.ts'
import { conversation } from './conversation/contract.ts'
import conversationWorker from './conversation/worker.ts'
import { createWorkerEdge } from './edge.ts'

/** What a free Worker may ask in one invocation, less what it needs to wake others. */
const MAX_REQUESTS = 45
const SECRET = newKey()

const kind = (name: string) => defineTask({ kind: name, description: name, input: z.any(), output: z.any() })
const add = defineTask({
  ...{ kind: 'add', description: 'Adds.', output: z.number() },
  input: z.object({ a: z.number(), b: z.number() }),
})
const pairs = (n: number) => Array.from({ length: n }, (_, i) => ({ a: i, b: 1 }))
const [steps, all, map] = [kind('steps'), kind('all'), kind('map')]

const adder = implement(add, ({ a, b }) => a + b)
const composers = [
  implement(steps, async (n, ctx) => {
    let sum = 0
    for (let i = 0; i < n; i++) sum += await ctx.step(`step ${i}`, () => i)
    return sum
  }),
  implement(all, async (n, ctx) => (await Promise.all(pairs(n).map((pair) => ctx.call(add, pair)))).length),
  implement(map, async (n, ctx) => (await ctx.map(add, pairs(n))).length),
]
const answers = implement(chat, ({ question }) => `On ${question.length} characters`)

test('a worker of kinds with secrets that has no key answers that it is not set up', async () => {
  const edge = createWorkerEdge({ implementations: () => [answers, conversationWorker] })
  const env = {
    ...{ UPSTASH_REDIS_REST_URL: 'http://127.0.0.1:9', UPSTASH_REDIS_REST_TOKEN: 'token' },
    ...{ DRAIN_TOKEN: 'drain', LOG_LEVEL: 'silent' },
  }
  const request = new Request('http://edge/drain', { method: 'POST', headers: { Authorization: 'Bearer drain' } })
  const lines: string[] = []
  const log = spyOn(console, 'log').mockImplementation((line: string) => void lines.push(line))
  try {
    const response = await edge.fetch(request, env)
    expect(await response.json()).toMatchObject({ type: 'urn:tasker:problem:misconfigured' })
  } finally {
    log.mockRestore()
  }
  expect(lines.join('\n')).toMatch(/no key for the secret fields of chat, conversation: set TASKER_SECRET/)
})

describe('drains of no more requests than an invocation may make', () => {
  let redis: Awaited<ReturnType<typeof startRedis>>
  let endpoint: RestEndpoint
  beforeAll(async () => {
    redis = await startRedis()
    endpoint = await startRestEndpoint(redis.url)
  })
  afterAll(async () => {
    await endpoint.stop()
    await redis.stop()
  })

  /** Drains with the edge's own entry point, again and again, until the task has ended; each drain within its budget. */
  async function end(contract: Contract, payload: unknown, modules: readonly (readonly Implementation[])[]) {
    const keyring = await createKeyring([SECRET])
    const client = createRestClient({ url: endpoint.url, token: endpoint.token })
    const broker = createRedisBroker(client)
    const id = crypto.randomUUID()
    const sealed = await sealPayload(keyring, contract, id, payload)
    const envelope = encodeEnvelope({ task_id: id, kind: contract.kind, payload: sealed, created_at: 1 })
    await broker.enqueue([{ id, kind: contract.kind, priority: 'normal', envelope }])
    const env = {
      ...{ UPSTASH_REDIS_REST_URL: endpoint.url, UPSTASH_REDIS_REST_TOKEN: endpoint.token, LOG_LEVEL: 'silent' },
      ...{ DRAIN_TOKEN: 'drain', DRAIN_MAX_REQUESTS: String(MAX_REQUESTS), TASKER_SECRET: SECRET },
    }
    const edges = modules.map((list) =>
      createWorkerEdge({ implementations: () => list, ...(list[0] === adder && { concurrency: 100 }) }),
    )
    let most = 0
    for (let drains = 1; drains < 2_000; drains++) {
      const [before, edge] = [await endpoint.bill(), edges[drains % edges.length]]
      const request = new Request('http://edge/drain', { method: 'POST', headers: { Authorization: 'Bearer drain' } })
      expect((await edge?.fetch(request, env))?.status).toBe(200)
      // The question for the bill is one, too.
      most = Math.max(most, (await endpoint.bill()).requests - before.requests - 1)
      expect(most).toBeLessThanOrEqual(MAX_REQUESTS)
      const [stored] = await broker.get([id])
      if (stored?.record) return { ...readRecord(stored.record), drains, most }
    }
    throw new Error('It does not come to an end.')
  }

  test('end a conversation of 100 turns', async () => {
    const payload = { topic: 'queues', n: 100, api_key: 'sk-0123456789' }
    const record = await end(conversation, payload, [[conversationWorker], [answers]])
    expect(record).toMatchObject({ status_code: 200, attempt: 1, calls: 100 })
  }, 60_000)

  test('end a handler of 200 steps', async () => {
    expect(await end(steps, 200, [composers])).toMatchObject({ result: '19900', attempt: 1 })
  }, 60_000)

  test('end 500 calls side by side', async () => {
    expect(await end(all, 500, [composers, [adder]])).toMatchObject({ result: '500', attempt: 1 })
  }, 60_000)

  test('end a map of 40,000', async () => {
    expect(await end(map, 40_000, [composers, [adder]])).toMatchObject({ result: '40000', attempt: 1 })
  }, 120_000)
})

describe('a store that is away', () => {
  test('makes a drain a 503 that wakes nobody, and no drain comes of it', async () => {
    let woken = 0
    const itself = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: () => new Response(null, { status: 202 + woken++ }),
    })
    try {
      const edge = createWorkerEdge({ implementations: () => [adder] })
      const env = {
        ...{ UPSTASH_REDIS_REST_URL: 'http://127.0.0.1:1', UPSTASH_REDIS_REST_TOKEN: 'x', LOG_LEVEL: 'silent' },
        ...{ DRAIN_TOKEN: 'drain', DRAIN_MAX_MS: '100', WORKER_URLS: itself.url.href },
      }
      const work: Promise<unknown>[] = []
      const context = { waitUntil: (promise: Promise<unknown>) => void work.push(promise) }
      const call = (more: Record<string, string>) =>
        edge.fetch(
          new Request('http://edge/drain', { method: 'POST', headers: { Authorization: 'Bearer drain', ...more } }),
          env,
          context,
        )
      const refused = await call({})
      expect([refused.status, refused.headers.get('Retry-After')]).toEqual([503, '1'])
      expect(await refused.json()).toMatchObject({ type: 'urn:tasker:problem:store-unavailable' })
      expect((await call({ Prefer: 'respond-async' })).status).toBe(202)
      await Promise.all(work)
      await expect(edge.scheduled?.({ scheduledTime: 30 * 60_000 }, env, context)).rejects.toThrow('did not answer')
      await Promise.all(work)
      expect(woken).toBe(0)
    } finally {
      await itself.stop(true)
    }
  })
})
