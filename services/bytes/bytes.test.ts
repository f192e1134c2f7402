import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import * as z from 'zod'
import type { Broker } from '#shared/broker/broker.ts'
import { sweepOnce } from '#shared/broker/expire.ts'
import type { RedisClient } from '#shared/broker/redis/client.ts'
import { kindKeys, partitionKeys } from '#shared/broker/redis/keys.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { MAX_BODY } from '#shared/http/body.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { type Contract, defineTask } from '#shared/task/define.ts'
import { bytesOf } from '#shared/task/json.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { randomNamespace, redisTestUrl } from '#shared/test/stores.ts'
import { implement } from '#shared/worker/implement.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createApp as createCreator } from '../creator/app.ts'
import { createApp as createManager } from '../manager/app.ts'

/**
 * What an answer may have, and what a call to the store may move beside the largest text in it, which is one task's
 * own.
 */
const MAX_ANSWER = 8_000_000
const MAX_CALL = 2_000_000
/** How many histories are played on each store. */
const RUNS = Number(process.env['BYTES_RUNS'] || 3)

/** Texts that take as much room as they may, in every form that a character has. */
const CHARS = ['x', 'é', '漢', '😀', '"', '\\', '\u0001', '\u007f', '\ud800']
const text = fc
  .record({ char: fc.constantFrom(...CHARS), share: fc.constantFrom(0, 0.001, 0.3, 0.6, 0.97) })
  .map(({ char, share }) => char.repeat((share * MAX_BODY) / bytesOf(JSON.stringify(char).slice(1, -1))))

const json = z.json()
const blob: Contract = defineTask({
  ...{ kind: 'blob', description: 'Gives what it is told to.', output: json },
  input: z.object({ text: z.string(), result: z.enum(['none', 'text', 'list', 'steps', 'fails', 'later']) }),
  retry: { maxAttempts: 3 },
})
const tree: Contract = defineTask({
  ...{ kind: 'tree', description: 'Calls many.', output: json, retry: { maxAttempts: 2 } },
  input: z.object({ text: z.string(), calls: z.int(), catches: z.boolean() }),
})
const contracts = { blob, tree }

const handlers = [
  implement(blob, async (payload, ctx) => {
    const { text, result } = payload as { text: string; result: string }
    ctx.progress(1, 2)
    if (result === 'text') return text
    if (result === 'list') return text.slice(0, 250_000).split('')
    if (result === 'steps') for (let i = 0; i < 4; i++) await ctx.step(`step ${i}`, () => text)
    if (result === 'later') await ctx.sleep(1_000)
    if (result === 'fails') throw new Error(text)
    return null
  }),
  implement(tree, async (payload, ctx) => {
    const { text, calls, catches } = payload as { text: string; calls: number; catches: boolean }
    const all = ctx.map(
      blob as Contract<z.ZodAny, z.ZodAny>,
      Array.from({ length: calls }, (_, i) => ({ text, result: i % 2 ? 'text' : 'steps' })),
    )
    return catches ? (await all.catch(() => [])).length : all
  }),
]

const result = fc.constantFrom('none', 'text', 'list', 'steps', 'fails', 'later')
const options = fc.record(
  { delay_ms: fc.constant(1_000), retention_s: fc.constant(1), priority: fc.constantFrom('high', 'low') },
  { requiredKeys: [] },
)
const act = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('create' as const), text, result, options }) },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant('call' as const), text, calls: fc.nat(12), catches: fc.boolean() }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('batch' as const), text, count: fc.integer({ min: 1, max: 1_000 }) }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('push' as const), text, ends: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('work' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('die' as const), limit: fc.constantFrom(1, 50) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(1_000, 60_000) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('sweep' as const) }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constantFrom('cancel' as const, 'retry' as const, 'delete' as const), n: fc.nat() }),
  },
)
type Act = typeof act extends fc.Arbitrary<infer A> ? A : never

/** Bytes of all texts in it, and of the largest. */
function sizesIn(value: unknown): { all: number; largest: number } {
  if (typeof value === 'string') return { all: bytesOf(value), largest: bytesOf(value) }
  if (!Array.isArray(value)) return { all: 8, largest: 0 }
  const sum = { all: 0, largest: 0 }
  for (const one of value) {
    const { all, largest } = sizesIn(one)
    sum.all += all
    sum.largest = Math.max(sum.largest, largest)
  }
  return sum
}

/** A client that fails the test when a call moves more than it may. */
function counted(client: RedisClient): RedisClient {
  const check = (what: string, value: unknown) => {
    const { all, largest } = sizesIn(value)
    if (all - largest > MAX_CALL) throw new Error(`${what} has ${all} bytes, ${largest} of them in one text.`)
  }
  return {
    ...client,
    async eval(script, keys, args) {
      check(`A call of ${script.name}`, [...args])
      const reply = await client.eval(script, keys, args)
      check(`The reply of ${script.name}`, reply)
      return reply
    },
    async publish(channel, message) {
      check('A message', [message, ''])
      return client.publish(channel, message)
    },
  }
}

interface Store {
  broker: Broker
  /** Queues an envelope as a foreign program does, and writes what ends it. */
  push(envelope: string): Promise<unknown>
  end(id: string, record: string): Promise<unknown>
}

const stores: { name: string; open(now: () => number): Store }[] = [
  {
    name: 'SQLite',
    open(now) {
      const none = async () => undefined
      return { broker: createSqliteBroker({ path: ':memory:', now }), push: none, end: none }
    },
  },
  ...[1, 2].map((partitions) => ({
    name: partitions === 1 ? 'Redis' : 'Redis in partitions',
    open(now: () => number): Store {
      const client = createTcpClient({ url: redisTestUrl() })
      const namespace = randomNamespace()
      const broker = createRedisBroker(counted(client), { namespace, now, partitions })
      const prefix = namespace + (partitions > 1 ? '{0}:' : '')
      const [, queue = ''] = kindKeys(prefix, 'blob')
      const [, records = ''] = partitionKeys(prefix)
      const write = (...[command, ...args]: string[]) => {
        const text = `return redis.call('${command}', KEYS[1], unpack(ARGV))`
        const script = {
          name: 'write',
          text,
          writes: true,
          sha: async () => new Bun.CryptoHasher('sha1').update(text).digest('hex'),
        }
        return client.eval(script, [args[0] ?? ''], args.slice(1))
      }
      return {
        broker,
        push: (envelope) => write('LPUSH', queue, envelope),
        end: (id, record) => write('HSET', records, id, record),
      }
    },
  })),
]

/** Plays a history, and looks at everything after each act. */
async function play(open: (now: () => number) => Store, acts: readonly Act[]): Promise<void> {
  const clock = manualClock(Date.UTC(2026, 0, 1))
  const { now } = clock
  const { broker, push, end } = open(now)
  const common = { contracts, log: silentLog, auth: null }
  const creator = createCreator({ ...common, broker, keyring: null, managerUrl: '', now })
  const manager = createManager({ ...common, broker, clock })
  const ids: string[] = []

  async function ask(app: typeof creator, path: string, init: RequestInit = {}): Promise<string> {
    const response = await app.request(path, init)
    const body = await response.text()
    expect(bytesOf(body)).toBeLessThan(MAX_ANSWER)
    // A text may end with any status.
    if (!new Headers(init.headers).has('Accept')) expect([200, 201, 404, 409, 413]).toContain(response.status)
    return body
  }
  const post = (path: string, body: unknown) =>
    ask(creator, path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })

  async function whileTimeGoesOn(work: Promise<unknown>): Promise<void> {
    let isDone = false
    const done = work.finally(() => {
      isDone = true
    })
    while (!isDone) {
      await nextTurn()
      clock.advance(5)
    }
    await done
  }

  async function look(): Promise<void> {
    const some = ids.slice(-3)
    for (const id of some) {
      await ask(manager, `/task/${id}`)
      await ask(manager, `/task/${id}`, { headers: { Accept: 'text/plain' } })
    }
    await whileTimeGoesOn(Promise.all(ids.slice(-20).map((id) => ask(manager, `/task/${id}?wait=1`))))
    await ask(manager, '/stats')
    for (const filter of ['', '&kind=blob', '&status=queued', ...some.map((id) => `&parent=${id}`)]) {
      // Some pages are enough: a list that moves on while it is read need not end.
      let cursor: string | null = ''
      for (let pages = 0; cursor !== null && pages < 4; pages++) {
        const page: string = await ask(manager, `/tasks?limit=200${filter}${cursor && `&cursor=${cursor}`}`)
        cursor = (JSON.parse(page) as { cursor?: string | null }).cursor ?? null
        // One task may be as large as it likes.
        if ((JSON.parse(page) as { tasks?: unknown[] }).tasks?.[1]) expect(bytesOf(page)).toBeLessThan(1_100_000)
      }
    }
  }

  async function created(body: string): Promise<void> {
    const { task_id, task_ids = [] } = JSON.parse(body) as { task_id?: string; task_ids?: string[] }
    ids.push(...(task_id ? [task_id] : task_ids.slice(0, 5)))
  }

  const foreignIds = new Set<string>()
  async function run(one: Act): Promise<void> {
    const id = 'n' in one ? (ids[one.n % Math.max(1, ids.length)] ?? 'none') : ''
    switch (one.do) {
      case 'create':
        return created(await post('/blob', { payload: { text: one.text, result: one.result }, options: one.options }))
      case 'call':
        return created(await post('/tree', { payload: { text: one.text, calls: one.calls, catches: one.catches } }))
      case 'batch': {
        const text = one.text.slice(0, one.text.length / one.count)
        return created(await post('/blob/batch', { payloads: Array(one.count).fill({ text, result: 'none' }) }))
      }
      case 'push': {
        const foreign = `foreign-${foreignIds.size}`
        foreignIds.add(foreign)
        await push(JSON.stringify({ task_id: foreign, payload: { text: one.text, result: 'text' } }))
        ids.push(foreign)
        if (one.ends) await end(foreign, JSON.stringify({ result: one.text, status_code: 200 }))
        return
      }
      case 'work':
        await whileTimeGoesOn(
          createWorker({ broker, implementations: handlers, keyring: null, log: silentLog, clock }).drain(),
        )
        return
      case 'die': {
        const { tasks } = await broker.claim({
          kinds: ['blob', 'tree'],
          limit: one.limit,
          leaseMs: 30_000,
          takeBack: true,
        })
        await broker.extend(tasks, 30_000)
        return
      }
      case 'wait':
        clock.advance(one.ms)
        return
      case 'sweep':
        await sweepOnce({ broker, contracts, now }, 500)
        return
      case 'cancel':
      case 'retry':
        await ask(manager, `/task/${id}/${one.do}`, { method: 'POST' })
        return
      case 'delete':
        await ask(manager, `/task/${id}`, { method: 'DELETE' })
    }
  }

  for (const one of acts) {
    await run(one)
    await look()
  }
  await broker.close()
}

describe.each(stores)('with payloads at the limits, on $name,', ({ open }) => {
  test('no answer has over 8 MB, no page over 1 MB, and no call to the store moves over 2 MB beyond one task’s own text', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(act, { minLength: 6, maxLength: 16, size: 'max' }), (acts) => play(open, acts)),
      { numRuns: RUNS, endOnFailure: true, seed: Number(process.env['BYTES_SEED'] || 2026) },
    )
  }, 300_000)
})
