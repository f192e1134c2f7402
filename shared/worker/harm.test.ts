import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import * as z from 'zod'
import type { Broker } from '#shared/broker/broker.ts'
import { nextTurn, systemClock } from '#shared/runtime/clock.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { secret } from '#shared/task/define.ts'
import { PermanentError, StoreUnavailable } from '#shared/task/errors.ts'
import { stores } from '#shared/test/stores.ts'
import { adder, kind, type WorkerScene, workerScene } from '#shared/test/worker-scene.ts'
import { type Context, implement } from './implement.ts'

const parent = kind('parent', { retry: { maxAttempts: 3, backoffMs: 10 } })
const busy = kind('busy', { retry: { maxAttempts: 2 } })

/** Holds the event loop, as a handler does that computes. */
function compute(ms: number): void {
  const until = performance.now() + ms
  while (performance.now() < until);
}

describe.each(stores)('a handler on $name', (store) => {
  let scene: WorkerScene
  beforeEach(() => {
    scene = workerScene(store)
  })
  afterEach(() => scene.broker.close())

  test('that computes lets heartbeats through between tasks, and leaves other workers their part', async () => {
    const { create, recordOf, worker } = scene
    const ids: string[] = []
    for (let i = 0; i < 60; i++) ids.push(await create(busy))
    // Time is real here: what is tried is the event loop. 60 × 20 ms are four leases long.
    const ran = new Map<string, string[]>()
    const options = { clock: systemClock, leaseMs: 300 }
    const workers = ['first', 'second'].map((name) =>
      worker(
        [
          implement(busy, (_, ctx) => {
            ran.set(ctx.taskId, [...(ran.get(ctx.taskId) ?? []), name])
            compute(20)
          }),
        ],
        options,
      ).drain(),
    )
    await Promise.all(workers)
    for (const id of ids) expect(await recordOf(id)).toMatchObject({ status_code: 200, attempt: 1 })
    const runs = [...ran.values()]
    expect(runs.every((one) => one.length === 1)).toBe(true)
    expect(new Set(runs.flat())).toEqual(new Set(['first', 'second']))
  })

  test('that works on beside a wait hears by its signal that its run is given up', async () => {
    const { create, recordOf, worker } = scene
    const slow = kind('slow')
    let active = 0
    let most = 0
    const outside = async (signal: AbortSignal) => {
      most = Math.max(most, ++active)
      for (let turn = 0; turn < 20 && !signal.aborted; turn++) await nextTurn()
      active--
      signal.throwIfAborted()
      return 'done'
    }
    const handler = implement(parent, async (_, ctx) => Promise.all([ctx.call(slow, 1), outside(ctx.signal)]))
    const ids = [await create(parent), await create(parent), await create(parent)]
    const list = [handler, implement(slow, (n) => n)]
    await worker(list, { concurrency: 1 }).drain()
    for (const id of ids) expect(await recordOf(id)).toMatchObject({ result: '[1,"done"]', attempt: 1 })
    // One that has just been told is still on its way out.
    expect(most).toBeLessThanOrEqual(2)
    expect(active).toBe(0)
  })

  describe('steps of a run that is over do not begin:', () => {
    test('after a cancel, and after a time-out', async () => {
      const { clock, create, recordOf, cancel, worker } = scene
      for (const how of ['cancelled', 'timeout']) {
        const effects: string[] = []
        const begun = Promise.withResolvers<AbortSignal>()
        const gate = Promise.withResolvers<void>()
        const handler = implement(parent, async (_, ctx) => {
          const mine = ctx.attempt
          begun.resolve(ctx.signal)
          if (mine === 1) await gate.promise
          await ctx.step('charge', () => void effects.push(`charged in attempt ${mine}`))
        })
        const id = await create(parent, {}, { timeout_ms: 1_000, max_attempts: 2 })
        const drained = worker([handler], { leaseMs: 3_000 }).drain()
        const signal = await begun.promise
        if (how === 'cancelled') await cancel(id, parent)
        clock.advance(1_250)
        while (!signal.aborted) await nextTurn()
        await drained
        clock.advance(60_000)
        await worker([handler]).drain()
        gate.resolve()
        for (let turn = 0; turn < 5; turn++) await nextTurn()
        expect(effects).toEqual(how === 'cancelled' ? [] : ['charged in attempt 2'])
        expect((await recordOf(id)).status).toBe(how === 'cancelled' ? 'cancelled' : undefined)
      }
    })

    test('nor after the handler has returned, and a ctx that was kept says so', async () => {
      const { create, worker } = scene
      const kept: Context[] = []
      await create(parent)
      await worker([implement(parent, (_, ctx) => void kept.push(ctx))]).drain()
      const [ctx] = kept
      const errors = await Promise.all([
        ctx?.step('late', () => expect.unreachable()).catch((error: PermanentError) => error),
        ctx?.call(parent, {}).catch((error: PermanentError) => error),
        ctx?.sleep(1).catch((error: PermanentError) => error),
      ])
      for (const error of errors) {
        expect(error).toMatchObject({ code: 'run_over', message: expect.stringContaining('await all calls') })
      }
      // A timer that a handler has left behind takes no process down.
      ctx?.progress(1, 2)
      ctx?.emit('late')
    })
  })

  test.each(['a call', 'the next step of another branch'])(
    'whose budget of requests ends beside %s does not repeat an effect',
    async (beside) => {
      const { clock, create, recordOf, worker } = scene
      const fast = kind('fast')
      const effects: string[] = []
      let left = 3
      const handler = implement(parent, async (_, ctx) => {
        const charge = ctx.step('charge', async () => {
          effects.push('charge')
          left = 0
          for (let turn = 0; turn < 10; turn++) await nextTurn()
          return 'charged'
        })
        const other =
          beside === 'a call' ? ctx.call(fast, 1) : ctx.step('a', () => 1).then(() => ctx.step('b', () => 2))
        return Promise.all([charge, other])
      })
      const id = await create(parent)
      const list = [handler, implement(fast, (n) => n)]
      const { more, queued } = await worker(list, { pollMs: 1 }).drain({ mayGoOn: () => left > 0 })
      // Who drains next is told that there is more.
      expect({ more, queued: queued.includes('parent') }).toEqual({ more: true, queued: true })
      left = 1_000
      clock.advance(1_000)
      await worker(list).drain()
      await worker(list).drain()
      expect(effects).toEqual(['charge'])
      expect((await recordOf(id)).status_code).toBe(200)
    },
  )

  test('that fails while an effect is under way is tried again when that has ended, and does not begin it a second time', async () => {
    const { clock, create, drain, recordOf } = scene
    const charges: number[] = []
    const gate = Promise.withResolvers<void>()
    let stocked = 0
    const handler = implement(parent, (_, ctx) =>
      Promise.all([
        ctx.step('charge', async () => {
          charges.push(ctx.attempt)
          await gate.promise
          return 'charged'
        }),
        ctx.step('stock', () => {
          if (++stocked > 1) return 'stocked'
          // The charge goes on for a while after the handler has failed.
          void (async () => {
            for (let turn = 0; turn < 20; turn++) await nextTurn()
            gate.resolve()
          })()
          throw new Error('once')
        }),
      ]),
    )
    const id = await create(parent)
    await drain([handler])
    clock.advance(1_000)
    await drain([handler])
    expect(await recordOf(id)).toMatchObject({ result: '["charged","stocked"]', attempt: 2 })
    expect(charges).toEqual([1])
  })

  test('that fails while an effect hangs is tried again at its time limit', async () => {
    const { clock, create, drain, recordOf } = scene
    const hanging = kind('hanging', { timeoutMs: 1_000, retry: { maxAttempts: 2, backoffMs: 10 } })
    const handler = implement(hanging, async (_, ctx) => {
      if (ctx.attempt === 2) return 'well'
      return Promise.all([
        ctx.step('hangs', () => new Promise(() => undefined)),
        ctx.step('fails', () => {
          throw new Error('once')
        }),
      ])
    })
    const id = await create(hanging)
    await drain([handler], { leaseMs: 600_000 })
    clock.advance(1_000)
    await drain([handler])
    expect(await recordOf(id)).toMatchObject({ result: 'well', attempt: 2 })
  })

  test('that changes its payload hides no secret from the mask', async () => {
    const { create, recordOf, clock, drain } = scene
    const guarded = kind('guarded', { input: z.object({ key: secret(z.string()) }), retry: { maxAttempts: 1 } })
    const handler = implement(guarded, async (payload, ctx) => {
      const { key } = payload
      payload.key = 'gone'
      await ctx
        .step('use', () => {
          throw new PermanentError(`The key ${key} does not fit`)
        })
        .catch(() => undefined)
      await ctx.sleep(1)
      throw new Error(`What now, ${key}?`)
    })
    const id = await create(guarded, { key: 'hunter2hunter2' })
    const keyring = await createKeyring([newKey()])
    await drain([handler], { keyring })
    clock.advance(10)
    await drain([handler], { keyring })
    expect((await recordOf(id)).result).toBe('What now, [sealed]?')
    expect((await recordOf(`${id}.0`)).result).toBe('The key [sealed] does not fit')
  })

  test('whose call is refused hides the secret that its error quotes', async () => {
    const { create, recordOf, drain } = scene
    const guarded = kind('guarded', {
      input: z.object({
        key: secret(z.string().refine((text) => text.startsWith('sk'), { error: ({ input }) => `not ${input}` })),
      }),
    })
    const handler = implement(parent, async (_, ctx) => {
      await ctx.call(guarded, { key: 'hunter2hunter2' }).catch(() => undefined)
      await ctx.sleep(1)
    })
    const id = await create(parent)
    await drain([handler])
    scene.clock.advance(10)
    await drain([handler])
    expect(await recordOf(id)).toMatchObject({ status_code: 200 })
    const stored = JSON.stringify(await scene.broker.get([id, `${id}.0`, `${id}.1`]))
    expect(stored).toContain('not [sealed]')
    expect(stored).not.toContain('hunter2')
  })

  test('whose step gives a list of nothing goes on', async () => {
    const { create, recordOf, drain } = scene
    const id = await create(parent)
    await drain([
      implement(parent, (_, ctx) => ctx.step('send all', () => Promise.all([1, 2].map(async () => undefined)))),
    ])
    expect(await recordOf(id)).toMatchObject({ result: '[null,null]' })
  })

  test.each<[string, () => unknown]>([
    ['a function', () => () => 1],
    ['a BigInt', () => 1n],
    [
      'a cycle',
      () => {
        const cycle: Record<string, unknown> = {}
        cycle['self'] = cycle
        return cycle
      },
    ],
    ['a Map', () => new Map([[1, 2]])],
    ['no number', () => ({ price: Number.NaN })],
  ])('whose step gives %s fails at once, and its effect is not repeated', async (_, effect) => {
    const { create, recordOf, clock, worker } = scene
    let effects = 0
    const handler = implement(parent, (_payload, ctx) =>
      ctx.step('charge', () => {
        effects++
        return effect()
      }),
    )
    const id = await create(parent)
    for (let attempt = 1; attempt <= 3; attempt++) {
      await worker([handler]).drain()
      clock.advance(60_000)
    }
    const record = await recordOf(id)
    expect(record).toMatchObject({ status: 'failed', attempt: 1, error: { type: 'bad_step_result' } })
    expect(record.result).toContain('ctx.step("charge")')
    expect(effects).toBe(1)
  })

  test('that gives a result JSON cannot hold fails with a sentence', async () => {
    const { create, recordOf, worker } = scene
    const id = await create(parent)
    await worker([implement(parent, () => ({ at: { last: new Set([1]) } }))]).drain()
    expect(await recordOf(id)).toMatchObject({ error: { type: 'invalid_output' }, attempt: 1 })
    expect((await recordOf(id)).result).toContain('.at.last is a Set')
  })

  test.each<[string, (ctx: Context) => unknown, string]>([
    ['progress of text', (ctx) => ctx.progress('10 %' as never, 100), 'bad_progress'],
    ['progress of no number', (ctx) => ctx.progress(Number.NaN, 100), 'bad_progress'],
    ['progress of less than nothing', (ctx) => ctx.progress(-1, 100), 'bad_progress'],
    ['a chunk that is no text', (ctx) => ctx.emit({} as never), 'bad_chunk'],
    ['a step without a name', (ctx) => ctx.step('', () => 1), 'bad_step'],
    ['a step without an effect', (ctx) => ctx.step('a', 1 as never), 'bad_step'],
    ['a sleep of text', (ctx) => ctx.sleep('1s' as never), 'bad_sleep'],
    ['a map of no list', (ctx) => ctx.map(parent, {} as never), 'bad_payloads'],
    ['an option that there is not', (ctx) => ctx.call(parent, {}, { timeoutMs: undefined } as never), 'invalid_input'],
    ['no attempts', (ctx) => ctx.call(parent, {}, { maxAttempts: 0 }), 'invalid_input'],
    ['an unknown priority', (ctx) => ctx.call(parent, {}, { priority: 'urgent' as never }), 'invalid_input'],
  ])('that gives %s is told so, and nobody else is harmed', async (_, misuse, type) => {
    const { create, recordOf, worker, broker } = scene
    const id = await create(parent)
    const drained = worker([implement(parent, async (_payload, ctx) => misuse(ctx)), adder])
    await drained.drain()
    expect(await recordOf(id)).toMatchObject({ status: 'failed', attempt: 1, error: { type } })
    expect(await broker.stats(['parent'])).toMatchObject([{ failed: 1, queued: 0 }])
  })

  test.each(['claim', 'settle', 'extend'] as const)(
    'is left to others when its worker meets an error in %s that nobody foresaw',
    async (method) => {
      const { broker, clock, create, recordOf, worker } = scene
      const broken: Broker = { ...broker, [method]: () => Promise.reject(new TypeError('nobody foresaw this')) }
      const begun = Promise.withResolvers<void>()
      const id = await create(busy)
      const list = [
        implement(busy, () => {
          begun.resolve()
          return method === 'extend' ? new Promise(() => undefined) : 'done'
        }),
      ]
      const loop = worker(list, { broker: broken, leaseMs: 3_000 }).loop(new AbortController().signal)
      if (method === 'extend') {
        await begun.promise
        clock.advance(1_000)
      }
      expect(await loop.catch((error: Error) => error.message)).toBe('nobody foresaw this')
      // Nothing was given back or settled: it goes to another when its lease ends.
      clock.advance(3_000)
      await worker([implement(busy, () => 'by another')]).drain()
      expect(await recordOf(id)).toMatchObject({ result: 'by another' })
    },
  )

  test('is not begun any more when its worker has met such an error, whatever a claim still brings', async () => {
    const { broker, create, worker } = scene
    const gate = Promise.withResolvers<void>()
    const begun: string[] = []
    await create(busy)
    const claiming = Promise.withResolvers<void>()
    let claims = 0
    const broken: Broker = {
      ...broker,
      async claim(request) {
        if (++claims > 1) {
          claiming.resolve()
          await gate.promise
        }
        return broker.claim(request)
      },
      async settle() {
        await claiming.promise
        throw new TypeError('nobody foresaw this')
      },
    }
    const list = [implement(busy, (_, ctx) => void begun.push(ctx.taskId))]
    const loop = worker(list, { broker: broken, concurrency: 4 }).loop(new AbortController().signal)
    while (begun.length === 0) await nextTurn()
    await create(busy)
    expect(await loop.catch((error: Error) => error.message)).toBe('nobody foresaw this')
    gate.resolve()
    for (let turn = 0; turn < 20; turn++) await nextTurn()
    expect(begun).toHaveLength(1)
  })

  test('is not begun while the store is away, and the worker goes on when it is back', async () => {
    const { broker, clock, create, recordOf, worker } = scene
    const id = await create(parent)
    let away = 3
    const flaky: Broker = {
      ...broker,
      get: (...args) => (away-- > 0 ? Promise.reject(new StoreUnavailable('away')) : broker.get(...args)),
    }
    const handler = implement(parent, async (_, ctx) => {
      await ctx.step('first', () => 1)
      return ctx.call(busy, {})
    })
    const loop = new AbortController()
    const looping = worker([handler, implement(busy, () => 'called')], { broker: flaky }).loop(loop.signal)
    for (let turn = 0; turn < 2_000 && (await broker.get([id]))[0]?.live; turn++) {
      await nextTurn()
      clock.advance(50)
    }
    loop.abort()
    await looping
    expect(await recordOf(id)).toMatchObject({ result: 'called', attempt: 1 })
  })
})
