import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import * as z from 'zod'
import type { Broker } from '#shared/broker/broker.ts'
import { retryTask } from '#shared/broker/retry.ts'
import { cancelTree, removeTree } from '#shared/broker/tree.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, type Keyring, sealPayload } from '#shared/runtime/seal.ts'
import { type Contract, defineTask, secret } from '#shared/task/define.ts'
import { ChildFailed, PermanentError, RetryLater, StoreUnavailable } from '#shared/task/errors.ts'
import { readRecord } from '#shared/task/record.ts'
import { encodeEnvelope, type FinalRecord } from '#shared/task/task.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { stores } from '#shared/test/stores.ts'
import { type Context, type Implementation, implement } from './implement.ts'
import { createWorker, type WorkerOptions } from './worker.ts'

const add = defineTask({
  kind: 'add',
  description: 'Adds.',
  input: z.object({ a: z.number(), b: z.number() }),
  output: z.number(),
})
const anyJson = z.unknown()
/** Time limits are looked at a few times a second. */
const TICK = 250

/** A kind whose handler the test gives. */
function kind(name: string, rules: Partial<Parameters<typeof defineTask>[0]> = {}) {
  return defineTask({ kind: name, description: name, input: anyJson, output: anyJson, ...rules })
}

for (const store of stores) {
  describe(`a worker on ${store.name}`, () => {
    let clock: ManualClock
    let broker: Broker
    let log: string[]
    const adder = implement(add, ({ a, b }) => a + b)

    beforeEach(() => {
      clock = manualClock()
      broker = store.open({ now: clock.now })
      log = []
    })
    afterEach(() => broker.close())

    function worker(implementations: Implementation[], options: Partial<WorkerOptions> = {}) {
      return createWorker({
        ...{ broker, clock, implementations, keyring: null, log: createLogger('debug', (line) => log.push(line)) },
        ...{ random: () => 1, ...options },
      })
    }

    async function create(contract: Contract, payload: unknown, envelope: Record<string, unknown> = {}) {
      const id = crypto.randomUUID()
      await broker.enqueue([
        {
          ...{ id, kind: contract.kind, priority: 'normal' },
          envelope: encodeEnvelope({ task_id: id, kind: contract.kind, payload, created_at: clock.now(), ...envelope }),
        },
      ])
      return id
    }

    /** As a foreign producer does: what Tasker makes was parsed before. */
    async function push(contract: Contract, payload: unknown) {
      const id = crypto.randomUUID()
      const envelope = JSON.stringify({ task_id: id, payload })
      await broker.enqueue([{ id, kind: contract.kind, priority: 'normal', envelope }])
      return id
    }

    async function recordOf(id: string): Promise<FinalRecord> {
      const [stored] = await broker.get([id])
      const record = stored?.record ? readRecord(stored.record) : null
      if (!record) throw new Error(`Task ${id} has not ended: ${JSON.stringify(stored)}`)
      return record
    }

    async function stateOf(id: string) {
      const [stored] = await broker.get([id])
      return stored?.live?.state ?? (stored?.record ? 'final' : null)
    }

    test('stores the result, the payload and the times of a task', async () => {
      const id = await create(add, { a: 1, b: 2 })
      expect((await worker([adder]).drain()).ran).toBe(1)
      expect(await recordOf(id)).toMatchObject({
        ...{ result: '3', content_type: 'application/json', status_code: 200, kind: 'add' },
        ...{ payload: { a: 1, b: 2 }, attempt: 1, created_at: clock.now(), finished_at: clock.now() },
      })
    })

    test('runs a thousand tasks with few calls, each once', async () => {
      const runs = new Map<string, number>()
      const counted = implement(add, ({ a, b }, ctx) => {
        runs.set(ctx.taskId, (runs.get(ctx.taskId) ?? 0) + 1)
        return a + b
      })
      const ids = await Promise.all(Array.from({ length: 1000 }, (_, i) => create(add, { a: i, b: 1 })))
      let calls = 0
      const counting: Broker = {
        ...broker,
        settle(...args) {
          calls++
          return broker.settle(...args)
        },
      }
      await worker([counted], { broker: counting, concurrency: 100 }).drain()
      expect(runs.size).toBe(1000)
      expect(Math.max(...runs.values())).toBe(1)
      expect((await recordOf(ids[999] as string)).result).toBe('1000')
      expect(calls).toBeLessThan(40)
    })

    test('large results go to the store in calls of about half a megabyte', async () => {
      const wide = kind('wide')
      const ids = await Promise.all(Array.from({ length: 40 }, () => create(wide, {})))
      const sizes: number[] = []
      const measuring: Broker = {
        ...broker,
        settle(outcomes, next) {
          sizes.push(outcomes.reduce((sum, one) => sum + (one.type === 'end' ? one.record.length : 0), 0))
          return broker.settle(outcomes, next)
        },
      }
      await worker([implement(wide, () => 'x'.repeat(100_000))], { broker: measuring }).drain()
      for (const id of ids) expect((await recordOf(id)).result).toHaveLength(100_000)
      expect(Math.max(...sizes)).toBeLessThan(700_000)
    })

    test('fails a task whose payload does not fit, at once and with the field named', async () => {
      const id = await push(add, { a: 'x', b: 2 })
      await worker([adder]).drain()
      const record = await recordOf(id)
      expect(record).toMatchObject({ status: 'failed', status_code: 422, attempt: 1, error: { type: 'invalid_input' } })
      expect(record.result).toContain('payload.a')
    })

    test('fails a task at once on a permanent error, with its status code and message', async () => {
      const broken = kind('broken')
      const id = await create(broken, {})
      const handler = () => {
        throw new PermanentError('Invalid API key', { statusCode: 400, code: 'invalid_api_key' })
      }
      await worker([implement(broken, handler)]).drain()
      expect(await recordOf(id)).toMatchObject({
        ...{ result: 'Invalid API key', status_code: 400, attempt: 1 },
        error: { type: 'invalid_api_key', message: 'Invalid API key' },
      })
    })

    test('retries other errors with a growing delay, and fails when the attempts are used up', async () => {
      const flaky = kind('flaky', { retry: { maxAttempts: 3, backoffMs: 1_000 } })
      const attempts: number[] = []
      const id = await create(flaky, {})
      const failing = worker([
        implement(flaky, (_, ctx) => {
          attempts.push(ctx.attempt)
          throw new Error(`no. ${ctx.attempt}`)
        }),
      ])
      await failing.drain()
      expect(await stateOf(id)).toBe('delayed')
      clock.advance(999)
      await failing.drain()
      expect(attempts).toEqual([1])
      clock.advance(1)
      await failing.drain()
      clock.advance(1_999)
      await failing.drain()
      expect(attempts).toEqual([1, 2])
      clock.advance(1)
      await failing.drain()
      expect(attempts).toEqual([1, 2, 3])
      expect(await recordOf(id)).toMatchObject({ status: 'failed', status_code: 500, attempt: 3, result: 'no. 3' })
    })

    test('waits at least as long as a RetryLater says', async () => {
      const limited = kind('limited')
      const id = await create(limited, {})
      const handler = (_: unknown, ctx: Context) => {
        if (ctx.attempt === 1) throw new RetryLater('Slow down', { afterMs: 90_000, statusCode: 429 })
        return 'done'
      }
      const patient = worker([implement(limited, handler)])
      await patient.drain()
      clock.advance(89_999)
      await patient.drain()
      expect(await stateOf(id)).toBe('delayed')
      clock.advance(1)
      await patient.drain()
      expect(await recordOf(id)).toMatchObject({ result: 'done', attempt: 2 })
    })

    test('tries again after its own delay when a RetryLater says no finite time, and keeps what ended beside it', async () => {
      const limited = kind('limited', { retry: { maxAttempts: 4, backoffMs: 1_000 } })
      const id = await create(limited, {})
      const beside = await create(add, { a: 1, b: 2 })
      const times = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
      const handler = (_: unknown, ctx: Context) => {
        if (ctx.attempt < 4) throw new RetryLater('Slow down', { afterMs: times[ctx.attempt - 1] ?? null })
        return 'done'
      }
      const patient = worker([implement(limited, handler), adder])
      for (const ms of [0, 1_000, 2_000, 4_000]) {
        clock.advance(ms)
        await patient.drain()
      }
      expect(await recordOf(id)).toMatchObject({ result: 'done', attempt: 4 })
      expect(await recordOf(beside)).toMatchObject({ result: '3' })
    })

    test('aborts the signal of a run whose time is up, and counts it as a failed attempt', async () => {
      const slow = kind('slow', { timeoutMs: 1_000, retry: { maxAttempts: 1 } })
      const id = await create(slow, {})
      const started = Promise.withResolvers<AbortSignal>()
      const drained = worker([
        implement(slow, (_, ctx) => {
          started.resolve(ctx.signal)
          return new Promise(() => undefined)
        }),
      ]).drain()
      const signal = await started.promise
      clock.advance(1_000)
      await drained
      expect(signal.aborted).toBe(true)
      expect(await recordOf(id)).toMatchObject({ status: 'failed', status_code: 504, error: { type: 'timeout' } })
    })

    test('a time limit of the task’s own fails the attempt, and is kept in the next', async () => {
      const slow = kind('slow')
      const id = await create(slow, {}, { timeout_ms: 2_000, max_attempts: 2 })
      const begun: Context[] = []
      const handler = implement(slow, (_, ctx) => {
        begun.push(ctx)
        return new Promise(() => undefined)
      })
      for (const attempt of [1, 2]) {
        const drained = worker([handler]).drain()
        while (begun.length < attempt) await nextTurn()
        clock.advance(1_999)
        expect(begun.at(-1)?.signal.aborted).toBe(false)
        clock.advance(TICK)
        await drained
        expect(begun.at(-1)?.signal.reason).toMatchObject({ code: 'timeout' })
        if (attempt === 1) expect(await stateOf(id)).toBe('delayed')
        clock.advance(60_000)
      }
      expect(await recordOf(id)).toMatchObject({ status_code: 504, error: { type: 'timeout' }, attempt: 2 })
    })

    test('aborts the signal of a run whose lease went to another, at its next heartbeat, and reports nothing', async () => {
      const slow = kind('slow')
      const id = await create(slow, {})
      const started = Promise.withResolvers<AbortSignal>()
      const clockOfSleepy = manualClock()
      const sleepy = worker(
        [
          implement(slow, (_, ctx) => {
            started.resolve(ctx.signal)
            return new Promise(() => undefined)
          }),
        ],
        { leaseMs: 30_000, clock: clockOfSleepy },
      ).drain()
      const signal = await started.promise
      clock.advance(30_000)
      await worker([implement(slow, () => 'from the second worker')]).drain()
      expect(signal.aborted).toBe(false)
      clockOfSleepy.advance(10_000)
      await sleepy
      expect(signal.reason).toMatchObject({ code: 'lease_lost' })
      expect(await recordOf(id)).toMatchObject({ result: 'from the second worker', attempt: 2 })
    })

    test.each([
      ['nothing at all', undefined],
      ['what has no text', Object.create(null)],
      ['an error without a message', Object.assign(new Error(), { message: undefined })],
      ['an error whose message is no text', Object.assign(new Error(), { message: { code: 1 } })],
      ['an error with a status that is no number', new PermanentError('odd', { statusCode: 10n as unknown as number })],
    ])('a handler that throws %s fails its task', async (_, thrown) => {
      for (const way of ['at once', 'later']) {
        const bad = kind('bad', { retry: { maxAttempts: 1 } })
        const id = await create(bad, {})
        const handler = implement(bad, () => {
          if (way === 'at once') throw thrown
          return Promise.reject(thrown)
        })
        await worker([handler], { concurrency: 1 }).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', result: expect.any(String) })
      }
    })

    test('a RetryLater without a sensible time waits as long as any other error', async () => {
      const later = kind('later')
      const ids = await Promise.all(
        [Number.NaN, Number.POSITIVE_INFINITY, -5].map((afterMs) => create(later, { afterMs })),
      )
      const handler = implement(later, (payload, ctx) => {
        if (ctx.attempt > 1) return 'well'
        throw new RetryLater('Not now', payload as { afterMs: number })
      })
      await worker([handler]).drain()
      for (const id of ids) expect(await stateOf(id)).toBe('delayed')
      // The longest that anybody may ask for.
      clock.advance(86_400_000)
      await worker([handler]).drain()
      for (const id of ids) expect(await recordOf(id)).toMatchObject({ result: 'well', attempt: 2 })
    })

    test('of two runs of a task in one worker the newer one counts, and is not taken for the one that is refused', async () => {
      const slow = kind('slow')
      const id = await create(slow, {})
      const runs: PromiseWithResolvers<void>[] = []
      const handler = implement(slow, async (_, ctx) => {
        const mine = Promise.withResolvers<void>()
        runs.push(mine)
        await mine.promise
        return ctx.attempt === 1 ? 'old' : `new, with ${await ctx.call(add, { a: 1, b: 2 })}`
      })
      // Its heartbeats do not reach the store, which gives it the task again.
      const deaf: Broker = { ...broker, extend: () => Promise.reject(new StoreUnavailable('away')) }
      const calls: number[] = []
      const watched: Broker = {
        ...deaf,
        settle(outcomes, next) {
          calls.push(outcomes.filter((outcome) => outcome.id === id).length)
          return broker.settle(outcomes, next)
        },
      }
      const stop = new AbortController()
      const loop = worker([handler, adder], { broker: watched, leaseMs: 30_000 }).loop(stop.signal)
      while (runs.length < 1) await nextTurn()
      clock.advance(30_000)
      while (runs.length < 2) await nextTurn()
      for (const run of runs) run.resolve()
      while ((await stateOf(id)) !== 'final') await nextTurn()
      stop.abort()
      await loop
      expect(await recordOf(id)).toMatchObject({ result: 'new, with 3', attempt: 2 })
      expect(Math.max(...calls)).toBe(1)
    })

    test('refuses a worker that wakes up after its lease went to another', async () => {
      const slow = kind('slow')
      const id = await create(slow, {})
      const started = Promise.withResolvers<void>()
      const finish = Promise.withResolvers<string>()
      const sleepy = worker(
        [
          implement(slow, () => {
            started.resolve()
            return finish.promise
          }),
        ],
        // It is stopped as a whole: its heartbeat too.
        { leaseMs: 30_000, clock: manualClock() },
      ).drain()
      await started.promise
      clock.advance(30_000)
      await worker([implement(slow, () => 'from the second worker')]).drain()
      finish.resolve('late')
      await sleepy
      expect(await recordOf(id)).toMatchObject({ result: 'from the second worker', attempt: 2 })
      expect(log.some((line) => line.includes('refused') && line.includes(id))).toBe(true)
    })

    test('keeps the lease of a long run by its heartbeat', async () => {
      const slow = kind('slow', { timeoutMs: 600_000 })
      const id = await create(slow, {})
      const started = Promise.withResolvers<void>()
      const finish = Promise.withResolvers<string>()
      const extended = Promise.withResolvers<void>()
      const watched = {
        ...broker,
        async extend(...args: Parameters<Broker['extend']>) {
          const lapsed = await broker.extend(...args)
          extended.resolve()
          return lapsed
        },
      }
      const handler = (_: unknown, ctx: Context) => {
        ctx.progress(1, 2)
        started.resolve()
        return finish.promise
      }
      const drained = worker([implement(slow, handler)], { broker: watched, leaseMs: 30_000 }).drain()
      await started.promise
      clock.advance(20_000)
      await extended.promise
      clock.advance(20_000)
      expect((await worker([implement(slow, () => 'stolen')]).drain()).ran).toBe(0)
      expect((await broker.get([id]))[0]?.live?.progress).toEqual({ done: 1, total: 2 })
      finish.resolve('kept')
      await drained
      expect(await recordOf(id)).toMatchObject({ result: 'kept', attempt: 1 })
    })

    test('aborts the signal of a cancelled task at the next heartbeat, and reports nothing', async () => {
      const slow = kind('slow')
      const id = await create(slow, {})
      const started = Promise.withResolvers<AbortSignal>()
      const drained = worker([
        implement(slow, (_, ctx) => {
          started.resolve(ctx.signal)
          return new Promise((_resolve, reject) =>
            ctx.signal.addEventListener('abort', () => reject(ctx.signal.reason)),
          )
        }),
      ]).drain()
      const signal = await started.promise
      await cancelTree({ broker, contracts: {}, now: clock.now }, id)
      clock.advance(10_000)
      await drained
      expect(signal.reason).toMatchObject({ code: 'cancelled' })
      expect(await recordOf(id)).toMatchObject({ status: 'cancelled' })
    })

    test('gives back what does not end within the grace of a stop, the attempt not used up', async () => {
      const slow = kind('slow')
      const id = await create(slow, {})
      const started = Promise.withResolvers<AbortSignal>()
      const stop = new AbortController()
      const looping = worker(
        [
          implement(slow, (_, ctx) => {
            started.resolve(ctx.signal)
            return new Promise(() => undefined)
          }),
        ],
        { graceMs: 5_000 },
      ).loop(stop.signal)
      const signal = await started.promise
      stop.abort()
      clock.advance(4_999)
      expect(signal.aborted).toBe(false)
      clock.advance(1)
      await looping
      expect(signal.reason).toMatchObject({ code: 'stopping' })
      expect(await stateOf(id)).toBe('queued')
      await worker([implement(slow, (_, ctx) => ctx.attempt)]).drain()
      expect(await recordOf(id)).toMatchObject({ result: '1' })
    })

    test('sweeps on without a pause while more has expired than one sweep takes', async () => {
      await Promise.all(Array.from({ length: 1_200 }, (_, i) => create(add, { a: i, b: 1 }, { retention_s: 1 })))
      await worker([adder]).drain()
      const found: number[] = []
      const done = Promise.withResolvers<void>()
      const sweeping: Broker = {
        ...broker,
        async sweep(limit) {
          const swept = await broker.sweep(limit)
          found.push(swept.expired.length)
          if (swept.expired.length < limit) done.resolve()
          return swept
        },
      }
      const stop = new AbortController()
      const looping = worker([adder], { broker: sweeping }).loop(stop.signal)
      while (found.length === 0) {
        clock.advance(1_000)
        await nextTurn()
      }
      await done.promise
      expect(found).toEqual([500, 500, 200])
      stop.abort()
      await looping
      expect((await broker.stats(['add']))[0]).toMatchObject({ succeeded: 0 })
    })

    test('keeps the result of a step that is on its way to the store when the grace of a stop is over', async () => {
      const stepper = kind('stepper')
      const [settling, stepped, answer] = [0, 1, 2].map(() => Promise.withResolvers<void>()) as [
        PromiseWithResolvers<void>,
        PromiseWithResolvers<void>,
        PromiseWithResolvers<void>,
      ]
      let settles = 0
      let ran = 0
      // The first settle is held up: what is to be stored meanwhile goes together in the next.
      const slowly: Broker = {
        ...broker,
        async settle(...call) {
          if (++settles === 1) {
            settling.resolve()
            await answer.promise
          }
          return broker.settle(...call)
        },
      }
      const stepping = implement(stepper, async (_, ctx) => {
        await settling.promise
        return ctx.step('once', () => {
          stepped.resolve()
          return ++ran
        })
      })
      await create(add, { a: 1, b: 2 })
      const id = await create(stepper, {})
      const stop = new AbortController()
      const looping = worker([adder, stepping], { broker: slowly, graceMs: 1_000 }).loop(stop.signal)
      await stepped.promise
      await nextTurn()
      stop.abort()
      clock.advance(1_000)
      await nextTurn()
      answer.resolve()
      await looping
      expect(await stateOf(id)).toBe('queued')
      await worker([stepping]).drain()
      expect(await recordOf(id)).toMatchObject({ result: '1', attempt: 1 })
      expect(ran).toBe(1)
    })

    test('is woken by a new task while it waits', async () => {
      const stop = new AbortController()
      const done = Promise.withResolvers<void>()
      const first = Promise.withResolvers<void>()
      const looping = worker([
        implement(add, ({ a, b }) => {
          if (a === 0) first.resolve()
          else done.resolve()
          return a + b
        }),
      ]).loop(stop.signal)
      await create(add, { a: 0, b: 0 })
      await first.promise
      // Time stands still: only a wake-up can bring the second one.
      await create(add, { a: 1, b: 0 })
      await done.promise
      stop.abort()
      await looping
    })

    test('gives up a task that took its worker down in every attempt', async () => {
      const id = await create(add, { a: 1, b: 2 }, { max_attempts: 2 })
      for (const _ of [1, 2]) {
        expect((await broker.claim({ kinds: ['add'], limit: 1, leaseMs: 1_000, takeBack: true })).tasks).toHaveLength(1)
        clock.advance(1_000)
      }
      await worker([adder]).drain()
      expect(await recordOf(id)).toMatchObject({ status: 'failed', attempt: 3, error: { type: 'worker_lost' } })
    })

    test('fails a task whose result does not fit its kind, or is too large', async () => {
      const big = kind('big')
      const [wrong, huge] = [await create(add, { a: 1e308, b: 1e308 }), await create(big, {})]
      await worker([adder, implement(big, () => 'x'.repeat(1_048_577))]).drain()
      expect(await recordOf(wrong)).toMatchObject({ status: 'failed', error: { type: 'invalid_output' } })
      expect(await recordOf(huge)).toMatchObject({ status: 'failed', error: { type: 'too_large' } })
    })

    test('counts the size of a result, a step and a chunk as JSON: a control character is six bytes', async () => {
      const control = '\u0001'.repeat(200_000)
      const [result, step, chunk] = [kind('result'), kind('step'), kind('chunk')]
      const ids = [await create(result, {}), await create(step, {}), await create(chunk, {})]
      await worker([
        implement(result, () => control),
        implement(step, (_, ctx) => ctx.step('one', () => control)),
        implement(chunk, (_, ctx) => ctx.emit(control)),
      ]).drain()
      for (const id of ids) expect(await recordOf(id)).toMatchObject({ status: 'failed', error: { type: 'too_large' } })
      const fits = await create(result, {})
      await worker([implement(result, () => control.slice(0, 174_000))]).drain()
      expect(await recordOf(fits)).toMatchObject({ status_code: 200 })
      const [stored] = await broker.get([fits])
      expect(stored?.record?.length).toBeLessThan(1_100_000)
    })

    test('gives large tasks back in parts of about half a megabyte, and holds no more of them than it has memory for', async () => {
      const big = kind('big', { concurrency: 400 })
      const payload = 'x'.repeat(200_000)
      const ids: string[] = []
      for (let i = 0; i < 100; i++) ids.push(await create(big, payload))
      const released: number[] = []
      const counting: Broker = {
        ...broker,
        settle(outcomes, next) {
          released.push(outcomes.length)
          return broker.settle(outcomes, next)
        },
      }
      let [running, most] = [0, 0]
      const stop = new AbortController()
      const full = Promise.withResolvers<void>()
      const never = implement(big, (_, ctx) => {
        most = Math.max(most, ++running)
        if (running === 40) full.resolve()
        return new Promise((_, reject) => ctx.signal.addEventListener('abort', () => reject(ctx.signal.reason)))
      })
      const looped = worker([never], { broker: counting, graceMs: 0 }).loop(stop.signal)
      await full.promise
      await nextTurn()
      stop.abort()
      await looped
      expect(most).toBeLessThan(50)
      expect(Math.max(...released)).toBeLessThanOrEqual(2)
      const [stats] = await broker.stats(['big'])
      expect(stats).toMatchObject({ queued: 100, running: 0 })
    })

    test('goes on by itself after an outage of the store, and loses no result in hand', async () => {
      const id = await create(add, { a: 1, b: 2 })
      let away = true
      const outage = Promise.withResolvers<void>()
      const { StoreUnavailable } = await import('#shared/task/errors.ts')
      const unreliable: Broker = {
        ...broker,
        async settle(...args) {
          if (!away) return broker.settle(...args)
          outage.resolve()
          throw new StoreUnavailable('It is away.')
        },
      }
      const drained = worker([adder], { broker: unreliable }).drain()
      await outage.promise
      away = false
      // The wait before the next try starts a moment later.
      while (!log.some((line) => line.includes('does not answer'))) await Promise.resolve()
      clock.advance(5_000)
      await drained
      expect(await recordOf(id)).toMatchObject({ result: '3', attempt: 1 })
    })

    test('a clock that is put back holds up nothing: what a worker that died has left is still found', async () => {
      let aheadMs = 3_600_000
      const unsteady = { now: () => clock.now() + aheadMs, sleep: clock.sleep }
      const stopping = new AbortController()
      // No wake-up tells of the task: it is the regular look that finds it.
      const deaf: Broker = { ...broker, subscribe: async () => ({ close: async () => undefined }) }
      const loop = worker([adder], { broker: deaf, clock: unsteady }).loop(stopping.signal)
      const pass = async (ms: number) => {
        for (let i = 0; i < ms; i += 500) {
          clock.advance(500)
          // Each answer lets the worker go on by one call.
          for (let turn = 0; turn < 3; turn++) await broker.ping().then(nextTurn)
        }
      }
      await pass(2_000)
      aheadMs = 0
      const id = await create(add, { a: 1, b: 2 })
      await broker.claim({ kinds: ['add'], limit: 1, leaseMs: 30_000, takeBack: true })
      await pass(33_000)
      const state = await stateOf(id)
      stopping.abort()
      await pass(10_000)
      await loop
      expect(state).toBe('final')
    })

    describe('composition', () => {
      const parent = kind('parent')
      /** Forgets what is kept in memory at every turn: each resume is a re-run from history. */
      async function drainAnew(implementations: Implementation[], options: Partial<WorkerOptions> = {}) {
        let ran = 0
        for (let turn = 0; turn < 50; turn++) {
          const { ran: count } = await worker(implementations, options).drain({ maxTasks: 1 })
          if (count === 0) return ran
          ran += count
        }
        throw new Error('It does not come to an end.')
      }
      const ways = [
        { way: 'in place', drain: async (list: Implementation[]) => (await worker(list).drain()).ran },
        { way: 'from history', drain: drainAnew },
        {
          way: 'with one slot',
          drain: async (list: Implementation[]) => (await worker(list, { concurrency: 1 }).drain()).ran,
        },
      ]

      for (const { way, drain } of ways) {
        test(`awaits children one after the other, ${way}`, async () => {
          const id = await create(parent, {})
          const handler = implement(parent, async (_, ctx) => {
            const three = await ctx.call(add, { a: 1, b: 2 })
            const seven = await ctx.call(add, { a: three, b: 4 })
            return [three, seven]
          })
          await drain([handler, adder])
          expect(await recordOf(id)).toMatchObject({ result: '[3,7]', calls: 2, steps: 0, attempt: 1 })
          expect(await recordOf(`${id}.1`)).toMatchObject({ result: '7', parent: { id, kind: 'parent' } })
        })

        test(`awaits calls side by side, maps and nested parents, ${way}`, async () => {
          const middle = kind('middle')
          const id = await create(parent, {})
          const nested = implement(middle, async (payload, ctx) => {
            const numbers = await ctx.map(add, [
              { a: Number(payload), b: 1 },
              { a: Number(payload), b: 2 },
            ])
            return numbers
          })
          const handler = implement(parent, async (_, ctx) => {
            const both = await Promise.all([ctx.call(middle, 10), ctx.call(middle, 20), ctx.map(add, [])])
            return both
          })
          await drain([handler, nested, adder])
          expect((await recordOf(id)).result).toBe('[[11,12],[21,22],[]]')
        })

        test(`rejects the await of a failed child with its error, which the handler may catch, ${way}`, async () => {
          const failing = kind('failing')
          const [caught, uncaught] = [await create(parent, 'catch'), await create(parent, 'throw')]
          let cleanups = 0
          const handler = implement(parent, async (payload, ctx) => {
            try {
              return await ctx.call(failing, {})
            } catch (error) {
              if (payload !== 'catch') throw error
              return error instanceof ChildFailed && [error.statusCode, error.message, error.code]
            } finally {
              cleanups++
            }
          })
          const broken = implement(failing, () => {
            throw new PermanentError('Bad luck', { statusCode: 418, code: 'teapot' })
          })
          await drain([handler, broken])
          expect((await recordOf(caught)).result).toBe('[418,"Bad luck","teapot"]')
          expect(await recordOf(uncaught)).toMatchObject({
            result: 'Bad luck',
            status_code: 418,
            status: 'failed',
            attempt: 1,
          })
          // A run that is given up while it waits runs no finally block.
          expect(cleanups).toBe(2)
        })

        test(`runs a step once, whatever happens after it, ${way}`, async () => {
          const id = await create(parent, {})
          let effects = 0
          const handler = implement(parent, async (_, ctx) => {
            const token = await ctx.step('draw', () => ({ drawn: ++effects }))
            const sum = await ctx.call(add, { a: token.drawn, b: 1 })
            return [token, sum, await ctx.step('nothing', () => undefined)]
          })
          await drain([handler, adder])
          expect(await recordOf(id)).toMatchObject({ result: '[{"drawn":1},2,null]', calls: 3, steps: 2 })
          expect(effects).toBe(1)
        })

        test(`sleeps without holding a slot, ${way}`, async () => {
          const id = await create(parent, {})
          const handler = implement(parent, async (_, ctx) => {
            await ctx.sleep(60_000)
            return 'slept'
          })
          await drain([handler])
          expect(await stateOf(id)).toBe('waiting')
          clock.advance(59_999)
          expect(await drain([handler])).toBe(0)
          clock.advance(1)
          await drain([handler])
          const startedAt = clock.now() - 60_000
          expect(await recordOf(id)).toMatchObject({ result: 'slept', attempt: 1, steps: 1, started_at: startedAt })
        })
      }

      test('a sleep of no finite time is an error in the handler', async () => {
        const id = await create(parent, {}, { max_attempts: 1 })
        const handler = implement(parent, async (_, ctx) => {
          await ctx.sleep(1)
          await ctx.sleep(Number.NaN)
          return 'never'
        })
        await worker([handler]).drain()
        clock.advance(1)
        await worker([handler]).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', result: expect.stringContaining('NaN') })
      })

      test('a sleep that is over wakes a parent whose child has not ended', async () => {
        const never = kind('never')
        const id = await create(parent, {})
        const handler = implement(parent, (_, ctx) =>
          Promise.race([ctx.call(never, {}), ctx.sleep(1_000).then(() => 'too late')]),
        )
        await worker([handler]).drain()
        clock.advance(1_000)
        await worker([handler]).drain()
        expect(await recordOf(id)).toMatchObject({ result: 'too late' })
        expect(await stateOf(`${id}.0`)).toBe('queued')
      })

      test('a fan-out larger than one call makes every child once', async () => {
        const id = await create(parent, {})
        const handler = implement(parent, async (_, ctx) => {
          const numbers = await ctx.map(
            add,
            Array.from({ length: 1_700 }, (_entry, i) => ({ a: i, b: 1 })),
          )
          return numbers.reduce((a, b) => a + b, 0)
        })
        await worker([handler, adder]).drain()
        expect(await recordOf(id)).toMatchObject({ result: String((1_700 * 1_701) / 2), calls: 1_700 })
        expect((await broker.stats(['add']))[0]?.succeeded).toBe(1_700)
      })

      test('a parent that dies between two parts of its fan-out is run again, and no child is made twice', async () => {
        const id = await create(parent, {})
        const handler = implement(parent, (_, ctx) =>
          ctx.map(
            add,
            Array.from({ length: 1_200 }, (_entry, i) => ({ a: i, b: 0 })),
          ),
        )
        let parts = 0
        const died = Promise.withResolvers<void>()
        const dying: Broker = {
          ...broker,
          async settle(outcomes, next) {
            if (outcomes.some(({ type }) => type === 'call') && ++parts === 2) {
              died.resolve()
              return new Promise(() => undefined)
            }
            return broker.settle(outcomes, next)
          },
        }
        void worker([handler], { broker: dying, clock: manualClock() }).drain()
        await died.promise
        clock.advance(30_000)
        await worker([handler, adder]).drain()
        expect(JSON.parse((await recordOf(id)).result)).toEqual(Array.from({ length: 1_200 }, (_, i) => i))
        expect((await broker.stats(['add']))[0]?.succeeded).toBe(1_200)
      })

      test.each([
        ['a heartbeat', 10_000, {}],
        ['its time limit', 70_000, { leaseMs: 600_000 }],
      ])('a parent that is being parked is not stopped by %s', async (_, ms, options) => {
        const id = await create(parent, {})
        const handler = implement(parent, async (_, ctx) => `${await ctx.call(add, { a: 1, b: 2 })} in ${ctx.attempt}`)
        const [parked, looked] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
        const late: Broker = {
          ...broker,
          // The store has parked it, and the answer is on its way.
          async settle(outcomes, next) {
            const settled = await broker.settle(outcomes, next)
            if (!outcomes.some(({ type }) => type === 'call')) return settled
            parked.resolve()
            await looked.promise
            return settled
          },
          async extend(...args) {
            const lapsed = await broker.extend(...args)
            looked.resolve()
            return lapsed
          },
        }
        const drained = worker([handler, adder], { broker: late, ...options }).drain()
        await parked.promise
        clock.advance(ms)
        if ('leaseMs' in options) {
          for (let turn = 0; turn < 3; turn++) await nextTurn()
          looked.resolve()
        }
        await drained
        expect(await recordOf(id)).toMatchObject({ status_code: 200, result: '3 in 1' })
      })

      test('what was parked goes on for its own task alone, and not for another of the same id', async () => {
        const handler = implement(parent, async (payload, ctx) => [payload, await ctx.call(add, payload as never)])
        const id = await create(parent, { a: 1, b: 1 })
        const first = worker([handler])
        await first.drain()
        await removeTree({ broker, contracts: {}, now: clock.now }, id)
        const envelope = encodeEnvelope({ task_id: id, kind: 'parent', payload: { a: 2, b: 2 } })
        await broker.enqueue([{ id, kind: 'parent', priority: 'normal', envelope }])
        await worker([handler]).drain()
        await worker([adder]).drain()
        await first.drain()
        expect(JSON.parse((await recordOf(id)).result)).toEqual([{ a: 2, b: 2 }, 4])
      })

      test('a child that failed has failed, whatever its status code', async () => {
        const moved = kind('moved')
        const id = await create(parent, {})
        const list = [
          implement(parent, (_, ctx) => ctx.call(moved, {})),
          implement(moved, () => {
            throw new PermanentError('It has moved', { statusCode: 302 })
          }),
        ]
        await worker(list).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', status_code: 302, result: 'It has moved' })
      })

      test.each([Number.NaN, Number.POSITIVE_INFINITY])('a sleep of %d ms fails its task, and no other', async (ms) => {
        const id = await create(parent, {})
        const other = await create(add, { a: 1, b: 2 })
        await worker([implement(parent, (_, ctx) => ctx.sleep(ms)), adder]).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', error: { type: 'bad_sleep' } })
        expect(await recordOf(other)).toMatchObject({ result: '3' })
      })

      test('sleeps as often at once as it likes', async () => {
        const id = await create(parent, {})
        const handler = implement(parent, async (_, ctx) => {
          const sleeps = await Promise.all(Array.from({ length: 5_000 }, (_entry, i) => ctx.sleep(i % 10)))
          return sleeps.length
        })
        await worker([handler]).drain()
        clock.advance(10)
        await worker([handler]).drain()
        expect(await recordOf(id)).toMatchObject({ result: '5000', calls: 5_000, steps: 5_000 })
      })

      test('a re-run that calls something else fails, and says which call', async () => {
        const id = await create(parent, {})
        let runs = 0
        const handler = implement(parent, async (_, ctx) => {
          runs++
          return ctx.call(add, { a: runs, b: 0 })
        })
        await drainAnew([handler, adder])
        const record = await recordOf(id)
        expect(record).toMatchObject({ status: 'failed', error: { type: 'history_mismatch' } })
        expect(record.result).toContain(`Call 0 of parent task ${id}`)
      })

      test('cancelling a parent ends its children, queued and running', async () => {
        const id = await create(parent, {})
        const handler = implement(parent, (_, ctx) =>
          ctx.map(add, [
            { a: 1, b: 1 },
            { a: 2, b: 2 },
          ]),
        )
        await worker([handler]).drain()
        await broker.claim({ kinds: ['add'], limit: 1, leaseMs: 1_000, takeBack: false })
        await cancelTree({ broker, contracts: {}, now: clock.now }, id)
        for (const task of [id, `${id}.0`, `${id}.1`])
          expect(await recordOf(task)).toMatchObject({ status: 'cancelled' })
        expect((await worker([handler, adder]).drain()).ran).toBe(0)
      })

      test('a failed parent that is retried keeps its steps and the children that succeeded, and calls the others anew', async () => {
        const fragile = kind('fragile')
        const contracts = { parent, fragile, add }
        const id = await create(parent, {})
        let [effects, healthy] = [0, false]
        const list = [
          implement(parent, async (_, ctx) => {
            const drawn = await ctx.step('draw', () => ++effects)
            return [drawn, await ctx.call(add, { a: drawn, b: 1 }), await ctx.call(fragile, {})]
          }),
          implement(fragile, () => {
            if (!healthy) throw new PermanentError('Not today')
            return 'well'
          }),
          adder,
        ]
        const { ran } = await worker(list).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', result: 'Not today' })
        healthy = true
        await retryTask({ broker, contracts, now: clock.now }, id)
        expect((await worker(list).drain()).ran).toBeLessThan(ran)
        expect(await recordOf(id)).toMatchObject({ status_code: 200, result: '[1,2,"well"]', calls: 3, steps: 1 })
        expect(effects).toBe(1)
      })

      test('what the handler makes in its last turn and does not wait for is not started, and said to be so', async () => {
        const awaited = await create(parent, 'step')
        const ids = [await create(parent, 'at once'), await create(parent, 'later'), await create(parent, 'call')]
        let effects = 0
        const handler = implement(parent, (payload, ctx) => {
          if (payload === 'call') void ctx.call(add, { a: 1, b: 1 })
          else void ctx.step('left alone', () => ++effects)
          if (payload === 'at once' || payload === 'call') return 'done'
          return ctx
            .step('first', () => 2)
            .then(() => {
              if (payload === 'later') void ctx.step('left alone too', () => ++effects)
              return 'done'
            })
        })
        await worker([handler]).drain()
        // What was made beside something that is awaited is started.
        expect(await recordOf(awaited)).toMatchObject({ status_code: 200, result: 'done' })
        expect(effects).toBe(2)
        for (const id of ids) {
          expect(await recordOf(id)).toMatchObject({ error: { type: 'not_awaited' } })
          expect((await recordOf(id)).result).toMatch(/ctx.(step|call).* await it/)
        }
        expect((await broker.stats(['add']))[0]).toMatchObject({ queued: 0, failed: 0, succeeded: 0 })
      })

      test('cancelling a root aborts the signal of a running grandchild at the next heartbeat', async () => {
        const [middle, leaf] = [kind('middle'), kind('leaf')]
        const started = Promise.withResolvers<AbortSignal>()
        const id = await create(parent, {})
        const drained = worker([
          implement(parent, (_, ctx) => ctx.call(middle, {})),
          implement(middle, (_, ctx) => ctx.call(leaf, {})),
          implement(leaf, (_, ctx) => {
            started.resolve(ctx.signal)
            return new Promise(() => undefined)
          }),
        ]).drain()
        const signal = await started.promise
        await cancelTree({ broker, contracts: {}, now: clock.now }, id)
        clock.advance(10_000)
        await drained
        expect(signal.reason).toMatchObject({ code: 'cancelled' })
        for (const task of [id, `${id}.0`, `${id}.0.0`])
          expect(await recordOf(task)).toMatchObject({ status: 'cancelled' })
      })

      test('an invalid payload for a child fails the parent at once, and nothing is called', async () => {
        const id = await create(parent, {})
        const handler = implement(parent, (_, ctx) => ctx.call(add, { a: 'x' as unknown as number, b: 1 }))
        await worker([handler, adder]).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', error: { type: 'invalid_input' } })
        expect(await stateOf(`${id}.0`)).toBeNull()
      })
    })

    describe('secrets', () => {
      const KEY = 'sk-very-secret-0123456789'
      const guarded = kind('guarded', { input: z.object({ key: secret(z.string()) }) }) as Contract
      let keyring: Keyring

      beforeEach(async () => {
        keyring = await createKeyring([btoa('k'.repeat(32))])
      })

      async function createGuarded(contract: Contract) {
        const id = crypto.randomUUID()
        const payload = await sealPayload(keyring, contract, id, { key: KEY })
        await broker.enqueue([
          {
            id,
            kind: contract.kind,
            priority: 'normal',
            envelope: encodeEnvelope({ task_id: id, kind: contract.kind, payload }),
          },
        ])
        return id
      }

      test('are opened for the handler, sealed for children, and in no record, error or log', async () => {
        const outer = kind('outer', { input: z.object({ key: secret(z.string()) }) })
        const seen: unknown[] = []
        const list = [
          implement(outer, async (payload, ctx) => {
            const { key } = payload as { key: string }
            seen.push(key)
            await ctx.call(guarded, { key }).catch(() => undefined)
            throw new Error(`What now, ${key}?`)
          }),
          implement(guarded, (payload) => {
            const { key } = payload as { key: string }
            seen.push(key)
            throw new PermanentError(`The key ${key} does not fit`)
          }),
        ]
        const id = await createGuarded(outer)
        const busy = worker(list, { keyring, clock })
        await busy.drain()
        const delayed = await broker.get([id, `${id}.0`])
        expect(JSON.stringify(delayed)).not.toContain(KEY)
        for (let attempt = 2; attempt <= 5; attempt++) {
          clock.advance(60_000)
          await busy.drain()
        }
        expect(new Set(seen)).toEqual(new Set([KEY]))
        expect(seen.length).toBeGreaterThanOrEqual(6)
        expect(await recordOf(id)).toMatchObject({
          payload: { key: '[sealed]' },
          result: 'What now, [sealed]?',
          attempt: 5,
        })
        expect((await recordOf(`${id}.0`)).result).toBe('The key [sealed] does not fit')
        expect(log.join('\n')).not.toContain(KEY)
      })
    })
  })
}
