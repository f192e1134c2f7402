import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { contracts } from '#services/workers/contracts.ts'
import { createImplementations } from '#services/workers/implementations.ts'
import sequence from '#services/workers/sequence/worker.ts'
import sum from '#services/workers/sum/worker.ts'
import { loadConfig } from '#shared/runtime/config.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { type Fault, type HttpProxy, startHttpProxy } from '#shared/test/http-proxy.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { countWrites } from '#shared/test/monitor.ts'
import { type RestEndpoint, startRestEndpoint } from '#shared/test/rest-endpoint.ts'
import { randomNamespace, redisTestUrl } from '#shared/test/stores.ts'
import { createWorker } from '#shared/worker/worker.ts'
import type { Broker, NewTask } from '../broker.ts'
import { sweepOnce } from '../expire.ts'
import { testBroker } from '../suite/suite.ts'
import { createRedisBroker } from './redis.ts'
import { createRestClient, type RestClientOptions } from './rest.ts'
import { createTcpClient } from './tcp.ts'

let endpoint: RestEndpoint
beforeAll(async () => {
  endpoint = await startRestEndpoint()
})
afterAll(() => endpoint.stop())

function restBroker(namespace: string, options: Partial<RestClientOptions> & { now?: () => number } = {}): Broker {
  const { now = Date.now, ...client } = options
  const { url, token } = endpoint
  return createRedisBroker(createRestClient({ url, token, ...client }), { namespace, now, resendAfterMs: [1, 1, 1] })
}

testBroker(
  { name: 'Redis over REST', open: async ({ namespace, now }) => restBroker(`${namespace}:`, { now }) },
  { numRuns: 25 },
)

const sumTask = (id: string, n = 1): NewTask => ({
  ...{ id, kind: 'sum', priority: 'normal', fresh: true },
  envelope: encodeEnvelope({ task_id: id, kind: 'sum', payload: { num1: n, num2: 1 } }),
})

describe('what it costs over REST', () => {
  const idle = { keyring: null, log: silentLog, pollMs: 360_000, sweepMs: 3_600_000 }

  /** A worker in its loop, woken by the store alone: time stands still. */
  async function withWorker(work: (broker: Broker, ended: (id: string) => Promise<void>) => Promise<void>) {
    const namespace = randomNamespace()
    const broker = restBroker(namespace)
    const seen = new Map<string, PromiseWithResolvers<void>>()
    const ended = (id: string) => {
      const wait = seen.get(id) ?? Promise.withResolvers<void>()
      seen.set(id, wait)
      return wait.promise
    }
    const watch = await broker.watch((event) => {
      if (event.type === 'end') {
        for (const { id } of event.tasks) {
          void ended(id)
          seen.get(id)?.resolve()
        }
      }
    })
    const stop = new AbortController()
    const first = Promise.withResolvers<void>()
    const watched: Broker = {
      ...broker,
      async claim(request) {
        const claim = await broker.claim(request)
        first.resolve()
        return claim
      },
    }
    const worker = createWorker({ ...idle, broker: watched, clock: manualClock(), implementations: [sum] })
    const loop = worker.loop(stop.signal)
    await first.promise
    await work(broker, ended)
    stop.abort()
    await loop
    await watch.close()
    await broker.close()
  }

  async function cost(work: () => Promise<void>) {
    const before = await endpoint.bill()
    await work()
    const after = await endpoint.bill()
    // Reading the bill is a request too.
    return { commands: after.commands - before.commands, requests: after.requests - before.requests - 1 }
  }

  test('a lone task, created, run and read, takes at most 20 commands and 5 requests', async () => {
    await withWorker(async (broker, ended) => {
      const round = async (id: string) => {
        await broker.enqueue([sumTask(id)])
        await ended(id)
        expect((await broker.get([id]))[0]?.record).toContain('"result":"2"')
      }
      // Loads the scripts.
      await round('warm-up')
      const { commands, requests } = await cost(() => round('lone'))
      console.log(`a lone task over REST: ${commands} commands, ${requests} requests`)
      expect(commands).toBeLessThanOrEqual(20)
      expect(requests).toBeLessThanOrEqual(5)
    })
  })

  test('a task in a batch of 50 takes at most 0.5 commands and 0.1 requests', async () => {
    await withWorker(async (broker, ended) => {
      const round = async (name: string) => {
        const ids = Array.from({ length: 50 }, (_, i) => `${name}-${i}`)
        await broker.enqueue(ids.map((id) => sumTask(id)))
        await Promise.all(ids.map(ended))
        expect((await broker.get(ids)).every((stored) => stored?.record)).toBe(true)
      }
      await round('warm-up')
      const { commands, requests } = await cost(() => round('batch'))
      console.log(`a task in a batch of 50 over REST: ${commands / 50} commands, ${requests / 50} requests`)
      expect(commands / 50).toBeLessThanOrEqual(0.5)
      expect(requests / 50).toBeLessThanOrEqual(0.1)
    })
  })

  test('an idle worker of all kinds takes less than 1,000 commands a day', async () => {
    const broker = restBroker(randomNamespace())
    const clock = manualClock()
    const { workerPollMs: pollMs, workerSweepMs: sweepMs } = loadConfig({
      UPSTASH_REDIS_REST_URL: endpoint.url,
      UPSTASH_REDIS_REST_TOKEN: endpoint.token,
    })
    let polls = 0
    let sweeps = 0
    let idleAgain = Promise.withResolvers<void>()
    const counting: Broker = {
      ...broker,
      async claim(request) {
        const claim = await broker.claim(request)
        polls++
        idleAgain.resolve()
        return claim
      },
      async sweep(limit) {
        const swept = await broker.sweep(limit)
        sweeps++
        return swept
      },
    }
    const stop = new AbortController()
    const { commands } = await cost(async () => {
      const worker = createWorker({
        ...{ broker: counting, clock, keyring: null, log: silentLog, pollMs, sweepMs },
        implementations: createImplementations(loadConfig({})),
      })
      const loop = worker.loop(stop.signal)
      await idleAgain.promise
      for (let time = 0; time < 86_400_000; time += pollMs) {
        idleAgain = Promise.withResolvers()
        // The worker goes to sleep in the turns after its call.
        await new Promise((resolve) => setImmediate(resolve))
        await new Promise((resolve) => setImmediate(resolve))
        clock.advance(pollMs)
        await idleAgain.promise
      }
      stop.abort()
      await loop
    })
    console.log(`an idle day over REST: ${commands} commands, ${polls} polls, ${sweeps} sweeps`)
    expect(polls).toBeGreaterThanOrEqual(86_400_000 / pollMs)
    expect(sweeps).toBeGreaterThanOrEqual(20)
    expect(commands).toBeLessThan(1_000)
    await broker.close()
  }, 20_000)
})

describe('faults on the way', () => {
  let proxy: HttpProxy
  let broker: Broker
  let namespace: string

  beforeEach(async () => {
    proxy = startHttpProxy(endpoint.url)
    namespace = randomNamespace()
    broker = restBroker(namespace, { url: proxy.url, timeoutMs: 500 })
    // Loads the scripts, so that a call is one request.
    await broker.enqueue([sumTask('first')])
    const { tasks } = await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 30_000, takeBack: true })
    await broker.settle(tasks.map(({ id, kind, token }) => ({ id, kind, token, type: 'release' })))
    await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 30_000, takeBack: false })
  })
  afterEach(async () => {
    await broker.close()
    await proxy.close()
  })

  const faults: Fault[] = ['lost request', 'lost answer', '500', '429', 'stall']
  for (const fault of faults) {
    test(`${fault}: everything goes on by itself, and happens once`, async () => {
      proxy.inject(fault)
      await broker.enqueue(['a', 'b', 'c'].map((id) => sumTask(id)))
      expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 3 })

      proxy.inject(fault)
      const request = { kinds: ['sum'], limit: 2, leaseMs: 30_000, takeBack: false }
      const { tasks } = await broker.claim(request)
      expect(tasks.map(({ id, attempt }) => [id, attempt])).toEqual([
        ['a', 1],
        ['b', 1],
      ])

      proxy.inject(fault)
      const record = '{"result":"2","status_code":200}'
      const { next } = await broker.settle(
        tasks.map(({ id, kind, token }) => ({
          id,
          kind,
          token,
          type: 'end',
          state: 'succeeded',
          record,
          endedAt: 0,
          expiresAt: null,
        })),
        request,
      )
      expect(next?.tasks.map(({ id, attempt }) => [id, attempt])).toEqual([['c', 1]])
      expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 0, running: 2, succeeded: 2 })
    })
  }

  test('a store that never answers is StoreUnavailable, never an empty queue, and tells no payload', async () => {
    proxy.inject('stall', 'stall', 'stall', 'stall')
    const error = await broker
      .claim({ kinds: ['sum'], limit: 1, leaseMs: 1_000, takeBack: false })
      .catch((e: unknown) => e)
    expect(error).toBeInstanceOf(StoreUnavailable)
    proxy.inject('500', '500', '500', '500')
    const refused = await broker.enqueue([sumTask('hidden', 987654)]).catch((e: unknown) => e)
    expect(String(refused)).toMatch(/^StoreUnavailable: Redis over REST at 127.0.0.1:\d+ did not answer to enqueue: /)
    expect(Bun.inspect(refused)).not.toContain('987654')
  })

  test('a wrong token says so, and not which', async () => {
    const stranger = restBroker(namespace, { token: 'not-the-token' })
    const error = await stranger.ping().catch((e: unknown) => e)
    expect(String(error)).toMatch(
      /^StoreUnavailable: Redis over REST at 127.0.0.1:\d+ refused to get: it does not accept the token: set UPSTASH_REDIS_REST_TOKEN/,
    )
    await stranger.close()
  })

  test('a subscription whose stream is cut is made again, and tells that it may have missed something', async () => {
    let wakes = 0
    let wake = Promise.withResolvers<void>()
    const subscription = await broker.subscribe(['sum'], () => {
      wakes++
      wake.resolve()
      wake = Promise.withResolvers()
    })
    const before = wakes
    const again = wake.promise
    proxy.cutStreams()
    await again
    expect(wakes).toBeGreaterThan(before)
    const woken = wake.promise
    await broker.enqueue([sumTask('after')])
    await woken
    await subscription.close()
  })

  test('a worker goes on through all of them, and commits each task once', async () => {
    const ids = Array.from({ length: 200 }, (_, i) => `t${i}`)
    await broker.enqueue(ids.map((id, i) => sumTask(id, i)))
    const runs = new Map<string, number>()
    const counted = {
      ...sum,
      handler: (...[payload, ctx]: Parameters<typeof sum.handler>) => {
        runs.set(ctx.taskId, (runs.get(ctx.taskId) ?? 0) + 1)
        return sum.handler(payload, ctx)
      },
    }
    proxy.inject('lost answer', '500', 'lost request', '429', 'stall', 'lost answer', 'lost answer')
    await createWorker({ broker, implementations: [counted], keyring: null, log: silentLog, concurrency: 40 }).drain()
    expect([...runs.values()].every((count) => count === 1)).toBe(true)
    expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 0, succeeded: 200 })
  }, 20_000)
})

describe('a mixed fleet', () => {
  test('2,000 tasks, created half over REST and half over TCP, worked by one REST and one TCP worker: each committed once', async () => {
    const namespace = randomNamespace()
    const rest = restBroker(namespace)
    const tcp = createRedisBroker(createTcpClient({ url: redisTestUrl() }), { namespace })
    const commits = await countWrites(redisTestUrl(), `${namespace}tasks`)
    const ran = { rest: 0, tcp: 0 }
    const worker = (broker: Broker, name: 'rest' | 'tcp') =>
      createWorker({
        ...{ broker, keyring: null, log: silentLog, concurrency: 20 },
        implementations: [
          {
            ...sum,
            handler: (payload, ctx) => {
              ran[name]++
              return sum.handler(payload, ctx)
            },
          } as typeof sum,
          sequence,
        ],
      })
    const ids = Array.from({ length: 2_000 }, (_, i) => `m${i}`)
    for (let i = 0; i < ids.length; i += 100) {
      await (i % 200 === 0 ? rest : tcp).enqueue(ids.slice(i, i + 100).map((id) => sumTask(id)))
    }
    await Promise.all([worker(rest, 'rest').drain(), worker(tcp, 'tcp').drain()])
    expect((await rest.stats(['sum']))[0]).toMatchObject({ queued: 0, running: 0, succeeded: 2_000 })
    expect((await tcp.get(ids)).every((stored) => stored?.record?.includes('"result":"2"'))).toBe(true)
    expect(ran.rest + ran.tcp).toBe(2_000)
    expect(Math.min(ran.rest, ran.tcp)).toBeGreaterThan(0)
    await commits.caughtUp()
    expect(commits.writes.size).toBe(2_000)
    expect([...commits.writes.values()].every((count) => count === 1)).toBe(true)
    expect(await sweepOnce({ broker: tcp, contracts, now: Date.now }, 10)).toEqual({ expired: 0, adopted: 0 })
    commits.close()
    await Promise.all([rest.close(), tcp.close()])
  }, 30_000)
})
