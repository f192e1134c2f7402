import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test'
import * as z from 'zod'
import type { Broker } from '#shared/broker/broker.ts'
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
const OLD = { finished_at: 1, retention_s: 1 }
const STEP = JSON.stringify({ result: '1', status_code: 200, step: 'one' })

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

  describe('a schedule', () => {
    const OLD_END = { state: 'succeeded', endedAt: 1, expiresAt: 2 } as const

    /** Results that expired long ago; those of a tree have children of their own. */
    async function expired(roots: number, children = 0): Promise<Broker> {
      const broker = createRedisBroker(createRestClient({ url: endpoint.url, token: endpoint.token }))
      const request = { kinds: ['old'], limit: 500, leaseMs: 30_000, takeBack: false }
      for (let i = 0; i < roots; i += 250) {
        const tasks = Array.from({ length: Math.min(250, roots - i) }, () => {
          const id = crypto.randomUUID()
          const envelope = encodeEnvelope({ task_id: id, kind: 'old', payload: null })
          return { id, kind: 'old', priority: 'normal' as const, envelope }
        })
        await broker.enqueue(tasks)
        const ends = (await broker.claim(request)).tasks.map(({ id, kind, token }) => {
          const records = Array.from({ length: children }, (_, n) => ({ id: `${id}.${n}`, record: STEP }))
          const called = { calls: children, steps: children, order: '', park: false, wakeAt: null, awaits: null }
          const length = { attempt: 1, calls: children, steps: children }
          const record = JSON.stringify({ result: '1', status_code: 200, kind, ...OLD, ...length })
          return {
            call: { type: 'call' as const, id, kind, token, children: [], records, ...called },
            end: { type: 'end' as const, id, kind, token, record, ...OLD_END },
          }
        })
        if (children > 0) for (const { call } of ends) await broker.settle([call])
        await broker.settle(ends.map(({ end }) => end))
      }
      return broker
    }

    const env = () => ({
      ...{ UPSTASH_REDIS_REST_URL: endpoint.url, UPSTASH_REDIS_REST_TOKEN: endpoint.token, LOG_LEVEL: 'silent' },
      ...{ DRAIN_MAX_REQUESTS: String(MAX_REQUESTS), TASKER_SECRET: SECRET },
    })
    const left = async (broker: Broker) => (await broker.stats(['old']))[0]?.succeeded
    const at = (minute: number) => ({ scheduledTime: Date.UTC(2026, 0, 1, 0, minute) })

    test('forgets as many results as its share of requests lets it, at any minute, and goes on the next time', async () => {
      const broker = await expired(6_000)
      const edge = createWorkerEdge({ implementations: () => [adder] })
      for (let minute = 17; (await left(broker)) !== 0; minute += 5) {
        const before = (await left(broker)) ?? 0
        const { requests } = await endpoint.bill()
        await edge.scheduled?.(at(minute), env())
        expect((await endpoint.bill()).requests - requests - 1).toBeLessThanOrEqual(MAX_REQUESTS)
        // 2,000 in five minutes are 500,000 a day.
        expect(before - ((await left(broker)) ?? 0)).toBeGreaterThanOrEqual(Math.min(before, 2_000))
      }
      const idle = await endpoint.bill()
      await edge.scheduled?.(at(59), env())
      // Once all is swept, it drains and does nothing else for an hour.
      expect((await endpoint.bill()).commands - idle.commands).toBeLessThanOrEqual(4)
    }, 60_000)

    test('shares the work with others of the same minute', async () => {
      const broker = await expired(3_000)
      const edges = Array.from({ length: 4 }, () => createWorkerEdge({ implementations: () => [adder] }))
      const before = (await endpoint.bill()).requests
      await Promise.all(edges.map((edge) => edge.scheduled?.(at(0), env())))
      expect(await left(broker)).toBe(0)
      // Three for each 500, and a few for each schedule; four that do the same would ask four times as much.
      expect((await endpoint.bill()).requests - before).toBeLessThan(2 * 18 + 4 * 6)
    }, 60_000)

    test('forgets small trees together', async () => {
      const broker = await expired(200, 4)
      const edge = createWorkerEdge({ implementations: () => [adder] })
      await edge.scheduled?.(at(0), env())
      expect(await left(broker)).toBe(0)
    }, 60_000)
  })
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
