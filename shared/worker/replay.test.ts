import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { AsyncLocalStorage } from 'node:async_hooks'
import * as z from 'zod'
import type { Broker } from '#shared/broker/broker.ts'
import { removeTree } from '#shared/broker/tree.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { defineTask } from '#shared/task/define.ts'
import { PermanentError } from '#shared/task/errors.ts'
import { stores } from '#shared/test/stores.ts'
import { add, adder, kind, type WorkerScene, workerScene } from '#shared/test/worker-scene.ts'
import { type Context, implement } from './implement.ts'

const parent = kind('parent', { retry: { maxAttempts: 3, backoffMs: 10 } })
const [fast, slow] = [kind('fast'), kind('slow')]
const fastOne = implement(fast, (payload) => payload ?? 'fast')
const slowOne = implement(slow, (payload) => payload ?? 'slow')

describe.each(stores)('replay on $name', (store) => {
  let scene: WorkerScene
  beforeEach(() => {
    scene = workerScene(store)
  })
  afterEach(() => scene.broker.close())

  /** Forgets at every turn what is kept in memory. */
  async function drainAnew(...list: Parameters<WorkerScene['drain']>[0]) {
    for (let turn = 0; turn < 60; turn++) {
      const { ran } = await scene.worker(list).drain({ maxTasks: 1 })
      if (ran === 0) return
      scene.clock.advance(1)
    }
  }

  describe('the order of completion', () => {
    test.each(['with names of their own', 'with equal names'])(
      'branches of steps keep their own results over a failed attempt, %s',
      async (names) => {
        const { clock, create, drain, recordOf } = scene
        let failures = 1
        const handler = implement(parent, async (_, ctx) => {
          const branch = async (item: string, i: number) => {
            const of = (name: string) => (names === 'with equal names' ? name : `${name} ${item}`)
            const quote = await ctx.step(of('quote'), () => clock.sleep(30 - 10 * i).then(() => item))
            return `${item}:${await ctx.step(of('book'), () => `booking-of-${quote}`)}`
          }
          const booked = await Promise.all(['A', 'B', 'C'].map(branch))
          if (failures-- > 0) throw new Error('once')
          return booked
        })
        const id = await create(parent)
        await drain([handler])
        clock.advance(100)
        await drain([handler])
        expect(await recordOf(id)).toMatchObject({
          attempt: 2,
          result: '["A:booking-of-A","B:booking-of-B","C:booking-of-C"]',
          // C was first.
          order: expect.stringMatching(/^0:2/),
        })
      },
    )

    test('branches of calls with payloads of their own are not taken for each other', async () => {
      const { create, worker, recordOf } = scene
      const kinds = [fast, slow]
      const handler = implement(parent, (_, ctx) =>
        Promise.all(
          [slow, fast].map(async (one) => {
            const first = await ctx.call(one, `first of ${one.kind}`)
            return ctx.call(add, { a: kinds.indexOf(one), b: String(first).length })
          }),
        ),
      )
      const id = await create(parent)
      // What `fast` calls goes on before `slow` has ended at all.
      await worker([handler, fastOne, adder]).drain()
      await drainAnew(slowOne, adder, handler)
      expect(await recordOf(id)).toMatchObject({ status_code: 200, result: '[14,13]', order: '0:1-2' })
    })

    test('is in the store before an effect begins that depends on it', async () => {
      const { broker, clock, create, worker, recordOf } = scene
      const begun: string[] = []
      const died = Promise.withResolvers<void>()
      const handler = implement(parent, async (_, ctx) => {
        const first = await Promise.race([ctx.call(slow, 'slow'), ctx.call(fast, 'fast')])
        return ctx.step('ship', async () => {
          begun.push(first)
          // The first worker dies while it ships.
          if (begun.length > 1) return first
          died.resolve()
          return new Promise<never>(() => undefined)
        })
      })
      const id = await create(parent)
      await worker([handler]).drain()
      await worker([fastOne]).drain()
      // Another clock says that the slow one ended long before.
      void worker([handler], { leaseMs: 1_000 }).drain()
      await died.promise
      const [live] = await broker.get([id])
      expect(live?.live?.order).toBe('0:1')
      clock.advance(-60_000)
      await worker([slowOne]).drain()
      clock.advance(62_000)
      await worker([handler]).drain()
      expect(begun).toEqual(['fast', 'fast'])
      expect(await recordOf(id)).toMatchObject({ result: 'fast' })
    })

    test.each(['fails', 'dies'])(
      'a race that the first call has won stays won when the attempt %s, though the other one was stamped earlier',
      async (how) => {
        const { broker, clock, create, worker, recordOf } = scene
        const begun: string[] = []
        const died = Promise.withResolvers<void>()
        const handler = implement(parent, async (_, ctx) => {
          const winner = await Promise.race([ctx.call(fast, 'a'), ctx.call(slow, 'b')])
          return ctx.step('pay', () => {
            begun.push(winner)
            if (begun.length > 1) return winner
            if (how === 'fails') throw new Error('once')
            died.resolve()
            return new Promise<string>(() => undefined)
          })
        })
        const id = await create(parent)
        await worker([handler]).drain()
        // The result of `slow` is stamped first, and on its way for long.
        const [settling, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
        const late: Broker = {
          ...broker,
          async settle(...args) {
            settling.resolve()
            await gate.promise
            return broker.settle(...args)
          },
        }
        const slowly = worker([slowOne], { broker: late }).drain()
        await settling.promise
        clock.advance(10)
        await worker([fastOne]).drain()
        const first = worker([handler], { leaseMs: 1_000 }).drain()
        await (how === 'fails' ? first : died.promise)
        gate.resolve()
        await slowly
        clock.advance(60_000)
        await worker([handler]).drain()
        expect(begun).toEqual(['a', 'a'])
        expect(await recordOf(id)).toMatchObject({ result: 'a' })
      },
    )

    test('costs one call where a race is followed by steps, however many', async () => {
      const { broker, create, worker, recordOf } = scene
      let settles = 0
      const counting: Broker = {
        ...broker,
        settle(outcomes, next) {
          settles += outcomes.some((one) => one.kind === 'parent') ? 1 : 0
          return broker.settle(outcomes, next)
        },
      }
      const handler = implement(parent, async (_, ctx) => {
        await Promise.race([ctx.call(fast, 'a'), ctx.call(slow, 'b')])
        for (let i = 0; i < 20; i++) await ctx.step(`${i}`, () => i)
      })
      const id = await create(parent)
      await worker([handler, fastOne], { broker: counting }).drain()
      // The park, how far the order was decided, 20 steps, the end.
      expect(settles).toBe(23)
      expect(await recordOf(id)).toMatchObject({ order: '0:0,2-21' })
    })

    test('is nothing at all where entries complete in the order of their numbers', async () => {
      const { broker, create, worker, recordOf } = scene
      const orders = new Set<string>()
      const watched: Broker = {
        ...broker,
        settle(outcomes, next) {
          for (const one of outcomes) if (one.type === 'call') orders.add(one.order)
          return broker.settle(outcomes, next)
        },
      }
      const handler = implement(parent, async (_, ctx) => {
        for (let i = 0; i < 5; i++) await ctx.call(add, { a: i, b: await ctx.step('b', () => i) })
        await ctx.map(
          add,
          Array.from({ length: 20 }, (_one, i) => ({ a: i, b: 1 })),
        )
        return (await Promise.all([1, 2, 3].map((i) => ctx.step(`${i}`, () => i)))).length
      })
      const id = await create(parent)
      await worker([handler, adder], { broker: watched }).drain()
      expect([...orders]).toEqual([''])
      expect((await recordOf(id)).order).toBeUndefined()
    })
  })

  describe('a race', () => {
    const race = implement(parent, async (_, ctx) => {
      const timeout = ctx.sleep(300).then(() => 'cancel order')
      const winner = await Promise.race([ctx.call(slow, 'order shipped'), timeout])
      const recorded = await ctx.step('record', () => winner)
      if (ctx.attempt === 1) throw new Error('once')
      return [winner, recorded]
    })

    test.each([
      ['the sleep', 301, 400, 'cancel order'],
      ['the call', 100, 400, 'order shipped'],
    ])('is won by %s that was over first, also for a parent that slept through both', async (_, endsAt, wakes, won) => {
      const { clock, create, worker, resultOf } = scene
      const id = await create(parent)
      await worker([race]).drain()
      clock.advance(endsAt)
      await worker([slowOne]).drain()
      clock.advance(wakes - endsAt)
      for (let attempt = 1; attempt <= 2; attempt++) {
        await worker([race]).drain()
        clock.advance(1_000)
      }
      expect(await resultOf(id)).toEqual([won, won])
    })

    test('does not flip when what lost ends before the next attempt', async () => {
      const { clock, create, worker, resultOf } = scene
      const id = await create(parent)
      await worker([race]).drain()
      clock.advance(300)
      await worker([race]).drain()
      await worker([slowOne]).drain()
      clock.advance(1_000)
      await worker([race]).drain()
      expect(await resultOf(id)).toEqual(['cancel order', 'cancel order'])
    })

    test('of two calls ends with the first, and the other runs on', async () => {
      const { create, worker, recordOf } = scene
      const handler = implement(parent, (_, ctx) => Promise.race([ctx.call(slow, 'slow'), ctx.call(fast, 'fast')]))
      const id = await create(parent)
      await worker([handler, fastOne]).drain()
      expect(await recordOf(id)).toMatchObject({ result: 'fast', order: '0:1' })
      await worker([slowOne]).drain()
      expect(await recordOf(`${id}.0`)).toMatchObject({ result: 'slow' })
    })

    test('with a sleep as a time limit holds up nothing that comes after it', async () => {
      const { clock, create, worker, recordOf } = scene
      const handler = implement(parent, async (_, ctx) => {
        const late = await Promise.race([ctx.call(slow, 'in time'), ctx.sleep(300).then(() => 'late')])
        return `${late}, ${await ctx.call(add, { a: 1, b: 2 })}`
      })
      const id = await create(parent)
      await worker([handler, adder]).drain()
      clock.advance(300)
      await worker([handler, adder]).drain()
      expect(await recordOf(id)).toMatchObject({ result: 'late, 3' })
    })

    test('of a step and a sleep is won by the sleep while the step goes on', async () => {
      const { create, drain, recordOf } = scene
      const handler = implement(parent, (_, ctx) =>
        Promise.race([ctx.step('fetch', () => new Promise(() => undefined)), ctx.sleep(50).then(() => 'gave up')]),
      )
      const id = await create(parent)
      await drain([handler])
      expect(await recordOf(id)).toMatchObject({ result: 'gave up' })
    })

    test('of a step and a call hears of the call while the step goes on', async () => {
      const { create, drain, recordOf } = scene
      const handler = implement(parent, (_, ctx) =>
        Promise.race([ctx.step('fetch', () => new Promise(() => undefined)), ctx.call(fast, 'called')]),
      )
      const id = await create(parent)
      await drain([handler, fastOne])
      expect(await recordOf(id)).toMatchObject({ result: 'called' })
    })
  })

  describe('waking', () => {
    /** How often a parent was taken up: once to begin, and then each time it was woken. */
    async function runsOf(handler: Parameters<WorkerScene['drain']>[0][number]) {
      const { create, worker, broker } = scene
      let runs = 0
      const counting: Broker = {
        ...broker,
        async settle(outcomes, next) {
          runs += outcomes.filter(({ kind: one, type }) => one === 'parent' && type !== 'end').length
          return broker.settle(outcomes, next)
        },
      }
      const id = await create(parent)
      await worker([handler, adder], { broker: counting, concurrency: 10 }).drain()
      return { runs, record: await scene.recordOf(id) }
    }
    const pairs = Array.from({ length: 100 }, (_, i) => ({ a: i, b: 1 }))

    test('a map wakes its parent once, alone or beside others', async () => {
      const alone = await runsOf(implement(parent, async (_, ctx) => (await ctx.map(add, pairs)).length))
      expect(alone).toMatchObject({ runs: 1, record: { result: '100' } })
      const two = await runsOf(
        implement(parent, async (_, ctx) => (await Promise.all([ctx.map(add, pairs), ctx.map(add, pairs)])).length),
      )
      expect(two.record.result).toBe('2')
      expect(two.runs).toBeLessThanOrEqual(3)
    })

    test('calls side by side that end together wake it together', async () => {
      const { runs, record } = await runsOf(
        implement(parent, async (_, ctx) => (await Promise.all(pairs.map((pair) => ctx.call(add, pair)))).length),
      )
      expect(record.result).toBe('100')
      expect(runs).toBeLessThan(25)
    })
  })

  describe('what a re-run compares', () => {
    test('a child that changes its payload changes a copy', async () => {
      const { create, recordOf, retry, worker } = scene
      let isBroken = true
      const changer = implement(fast, (payload) => {
        payload.list.push('changed')
        return payload.list.length
      })
      const handler = implement(parent, async (_, ctx) => {
        const length = await ctx.call(fast, { list: ['a'] })
        if (isBroken) throw new PermanentError('broken')
        return length
      })
      const id = await create(parent)
      await worker([handler, changer]).drain()
      expect((await recordOf(`${id}.0`)).payload).toEqual({ list: ['a'] })
      isBroken = false
      await retry(id, parent, fast)
      await worker([handler, changer]).drain()
      expect(await recordOf(id)).toMatchObject({ result: '2' })
    })

    test('the handler may go on to change what it has called with', async () => {
      const { create, recordOf } = scene
      const handler = implement(parent, async (_, ctx) => {
        const payload = { list: ['a'] }
        const called = ctx.call(fast, payload)
        payload.list.push('later')
        return [await called, await ctx.call(fast, 'next')]
      })
      const id = await create(parent)
      await drainAnew(handler, fastOne)
      expect((await recordOf(id)).result).toBe('[{"list":["a"]},"next"]')
    })

    test('defaults that differ each time, fields in another order and new fields with a default are no other call', async () => {
      const { create, recordOf, worker } = scene
      const before = kind('ordered', {
        input: z.object({ a: z.string(), id: z.string().default(() => crypto.randomUUID()), b: z.number() }),
      })
      const after = kind('ordered', {
        input: z.object({
          b: z.number(),
          a: z.string(),
          id: z.string().default(() => crypto.randomUUID()),
          c: z.boolean().default(true),
        }),
      })
      const handlerFor = (contract: typeof before) =>
        implement(parent, async (_, ctx) => {
          const one = await ctx.call(contract, { a: 'x', b: 1, typo: 2 })
          return [one.id, await ctx.call(add, { b: 1, a: 2 })]
        })
      const child = implement(before, (payload) => payload)
      const id = await create(parent)
      await worker([handlerFor(before), child]).drain()
      await drainAnew(handlerFor(after), adder)
      const record = await recordOf(id)
      expect(record).toMatchObject({ status_code: 200 })
      const stored = (await recordOf(`${id}.0`)).payload as { id: string }
      // A name that the schema does not know lies nowhere in the store.
      expect(Object.keys(stored).toSorted()).toEqual(['a', 'b', 'id'])
      expect(JSON.parse(record.result)).toEqual([stored.id, 3])
    })

    test('another payload is another call, where a default was filled in too', async () => {
      const { create, recordOf, worker } = scene
      const child = kind('ordered', { input: z.object({ a: z.number(), id: z.string().default('none') }) })
      let a = 1
      const handler = implement(parent, (_, ctx) => ctx.call(child, { a: a++ }))
      const id = await create(parent)
      await worker([handler]).drain()
      await drainAnew(
        implement(child, () => 1),
        handler,
      )
      expect(await recordOf(id)).toMatchObject({ error: { type: 'history_mismatch' } })
    })

    test('payloads and results are parsed once, each where it comes in', async () => {
      const { create, recordOf } = scene
      const child = defineTask({
        kind: 'marker',
        description: '',
        input: z.string().transform((text) => `<${text}>`),
        output: z.string().transform((text) => `(${text})`),
      })
      const id = await create(parent)
      await drainAnew(
        implement(parent, (_, ctx) => ctx.call(child, 'a')),
        implement(child, (text) => text),
      )
      expect(await recordOf(`${id}.0`)).toMatchObject({ payload: '<a>', result: '(<a>)' })
      expect(await recordOf(id)).toMatchObject({ result: '(<a>)' })
    })

    test('a result of nothing is nothing for the parent too', async () => {
      const { create, recordOf } = scene
      const results = [z.void(), z.undefined(), z.string().optional(), z.object({ a: z.string().optional() })]
      const kinds = results.map((output, i) => kind(`nothing${i}`, { output }))
      const id = await create(parent)
      await drainAnew(
        implement(parent, async (_, ctx) => {
          const given = [] as unknown[]
          for (const one of kinds) given.push(await ctx.call(one, {}))
          return given.map((value) => (value === undefined ? 'undefined' : value))
        }),
        ...kinds.map((one, i) => implement(one, () => (i === 3 ? { a: undefined } : undefined))),
      )
      expect(await recordOf(id)).toMatchObject({ result: '["undefined","undefined","undefined",{}]' })
    })
  })

  describe('a retry', () => {
    test('keeps failures that were handled, and forgets the one that ended the run', async () => {
      const { create, recordOf, retry, worker } = scene
      const [shaky, final] = [kind('shaky'), kind('final')]
      const runs = { shaky: 0, final: 0 }
      let isBroken = true
      const list = [
        implement(parent, async (_, ctx) => {
          const first = await ctx.call(shaky, {}).catch((error: Error) => error.message)
          const sum = await ctx.call(add, { a: String(first).length, b: 0 })
          return [first, sum, await ctx.call(final, {})]
        }),
        implement(shaky, () => {
          runs.shaky++
          throw new PermanentError('sold out')
        }),
        implement(final, () => {
          runs.final++
          if (isBroken) throw new PermanentError('not today')
          return 'done'
        }),
        adder,
      ]
      const id = await create(parent)
      await worker(list).drain()
      for (const time of [1, 2]) {
        expect(await recordOf(id)).toMatchObject({ status: 'failed', result: 'not today' })
        if (time === 2) isBroken = false
        await retry(id, parent, shaky, final, add)
        await worker(list).drain()
      }
      expect(await recordOf(id)).toMatchObject({ result: '["sold out",8,"done"]', status_code: 200 })
      expect(runs).toEqual({ shaky: 1, final: 3 })
    })

    test.each(['itself', 'a cause', 'another error in its place', 'all errors of Promise.any'])(
      'forgets a failure that the handler throws as %s',
      async (how) => {
        const { create, recordOf, retry, worker } = scene
        let isBroken = true
        const list = [
          implement(parent, async (_, ctx) => {
            try {
              if (how.startsWith('all')) return await Promise.any([ctx.call(fast, 1), ctx.call(fast, 2)])
              return await ctx.call(fast, {})
            } catch (error) {
              if (how === 'a cause') throw new PermanentError('wrapped', { cause: error })
              if (how.startsWith('another')) throw new PermanentError('not the same')
              throw error
            }
          }),
          implement(fast, () => {
            if (isBroken) throw new PermanentError('broken')
            return 'whole'
          }),
        ]
        const id = await create(parent)
        await worker(list).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', attempt: 1 })
        isBroken = false
        await retry(id, parent, fast)
        await worker(list).drain()
        expect(await recordOf(id)).toMatchObject({ result: 'whole' })
      },
    )

    test('of a map forgets what failed of it, and keeps the rest', async () => {
      const { create, recordOf, retry, worker } = scene
      const ran: unknown[] = []
      let isBroken = true
      const list = [
        implement(parent, (_, ctx) => ctx.map(fast, [1, 2, 3, 4])),
        implement(fast, (n) => {
          ran.push(n)
          if (isBroken && n % 2 === 0) throw new PermanentError('even')
          return n
        }),
      ]
      const id = await create(parent)
      await worker(list).drain()
      isBroken = false
      await retry(id, parent, fast)
      await worker(list).drain()
      expect(await recordOf(id)).toMatchObject({ result: '[1,2,3,4]' })
      expect(ran).toEqual([1, 2, 3, 4, 2, 4])
    })

    test.each(['its worker died in every attempt', 'its code failed before it came as far as before'])(
      'keeps failures that were handled also where %s',
      async (how) => {
        const { broker, clock, create, recordOf, retry, worker } = scene
        const shaky = kind('shaky')
        const runs: number[] = []
        let isBroken = true
        const handler = implement(kind('parent', { retry: { maxAttempts: 1 } }), async (_, ctx) => {
          // A run that begins anew, and code that fails by itself.
          runs.push(0)
          if (how.startsWith('its code') && runs.length === 2) throw new Error('not yet')
          const first = await ctx.call(shaky, {}).catch((error: Error) => error.message)
          const noted = await ctx.step('note', () => first)
          if (isBroken) await ctx.call(slow, {})
          return [first, noted]
        })
        let n = 0
        const shakyOne = implement(shaky, () => {
          throw new PermanentError(`failure ${++n}`)
        })
        const id = await create(parent)
        await worker([handler, shakyOne]).drain()
        isBroken = false
        if (how.startsWith('its code')) await worker([handler, slowOne]).drain()
        else {
          await worker([slowOne]).drain()
          await broker.claim({ kinds: ['parent'], limit: 1, leaseMs: 1_000, takeBack: false })
          clock.advance(1_000)
          await worker([handler]).drain()
        }
        expect(await recordOf(id)).toMatchObject({ status: 'failed' })
        await retry(id, parent, shaky, slow)
        await worker([handler, shakyOne, slowOne]).drain()
        expect(await recordOf(id)).toMatchObject({ result: '["failure 1","failure 1"]' })
      },
    )

    test.each(['Promise.all', 'allSettled, and an error of its own'])(
      'calls all that failed again, and not one after the other, with %s',
      async (how) => {
        const { create, recordOf, retry, worker } = scene
        let isBroken = true
        const list = [
          implement(parent, async (_, ctx) => {
            const calls = [1, 2, 3, 4, 5].map((n) => ctx.call(fast, n))
            if (how === 'Promise.all') return Promise.all(calls)
            const results = await Promise.allSettled(calls)
            const failed = results.filter(({ status }) => status === 'rejected').length
            if (failed > 0) throw new PermanentError(`${failed} failed`)
            return results.map((one) => (one.status === 'fulfilled' ? one.value : null))
          }),
          implement(fast, (n) => {
            if (isBroken && n > 1) throw new PermanentError(`down for ${n}`)
            return n
          }),
        ]
        const id = await create(parent)
        await worker(list).drain()
        expect(await recordOf(id)).toMatchObject({ status: 'failed', attempt: 1 })
        isBroken = false
        await retry(id, parent, fast)
        await worker(list).drain()
        expect(await recordOf(id)).toMatchObject({ result: '[1,2,3,4,5]' })
      },
    )

    test('of a cancelled task begins anew in the worker that had parked it, and calls again what was cancelled', async () => {
      const { cancel, clock, create, recordOf, retry, worker } = scene
      let begun = 0
      const handler = implement(parent, async (_, ctx) => {
        begun++
        return [await ctx.call(fast, 'a'), await ctx.call(slow, 'b'), begun]
      })
      const id = await create(parent)
      const first = worker([handler, fastOne])
      await first.drain()
      await cancel(id, parent)
      clock.advance(1)
      await retry(id, parent, fast, slow)
      await first.drain()
      await worker([slowOne]).drain()
      await first.drain()
      expect(await recordOf(id)).toMatchObject({ result: '["a","b",2]' })
    })
  })

  test('a step that failed, and that the handler went on from, stays failed', async () => {
    const { create, recordOf } = scene
    let effects = 0
    const handler = implement(parent, async (_, ctx) => {
      const stock = await ctx
        .step('reserve', () => {
          effects++
          throw Object.assign(new TypeError('no stock'), { code: 'E_STOCK', status: 409 })
        })
        .catch((error: Error & { code: string; status: number }) => [
          error.name,
          error.message,
          error.code,
          error.status,
        ])
      return [stock, await ctx.call(fast, 'next')]
    })
    const id = await create(parent)
    await drainAnew(handler, fastOne)
    expect(await recordOf(id)).toMatchObject({ result: '[["TypeError","no stock","E_STOCK",409],"next"]' })
    expect(effects).toBe(1)
  })

  test('a failure that is history is not met again and again: the task fails at once', async () => {
    const { create, recordOf, drain } = scene
    const handler = implement(parent, async (_, ctx) => {
      const [first] = await Promise.allSettled([
        ctx.step('reserve', () => {
          throw new Error('no stock')
        }),
      ])
      await ctx.call(fast, 'told')
      if (first?.status === 'rejected') throw first.reason
    })
    const id = await create(parent)
    await drain([handler, fastOne])
    expect(await recordOf(id)).toMatchObject({ status: 'failed', attempt: 1, result: 'no stock' })
  })

  test('a child that somebody has forgotten is called again, and its parent does not spin', async () => {
    const { broker, create, recordOf, worker } = scene
    const handler = implement(parent, (_, ctx) => Promise.all([ctx.call(fast, 1), ctx.call(slow, 2)]))
    const id = await create(parent)
    let reads = 0
    const counting: Broker = {
      ...broker,
      get(...args) {
        reads++
        return broker.get(...args)
      },
    }
    const first = worker([handler, fastOne], { broker: counting })
    // `slow` is cancelled, which its parent would be told of; then it is deleted before its parent looks.
    const lookless: Broker = { ...broker, claim: async () => ({ tasks: [], nextDueAt: null }) }
    await first.drain()
    await removeTree({ broker: lookless, contracts: {}, now: scene.clock.now }, `${id}.1`)
    await first.drain()
    expect(reads).toBeLessThan(20)
    await worker([handler, slowOne]).drain()
    expect(await recordOf(id)).toMatchObject({ result: '[1,2]' })
  })

  test('what is refused before it is called stays refused', async () => {
    const { create, recordOf } = scene
    const handler = implement(parent, async (_, ctx) => {
      const errors: string[] = []
      const note = (error: Error) => errors.push(`${error.name}: ${error.message}`)
      await ctx.call(add, { a: 'x', b: 1 } as never).catch(note)
      await ctx.call(fast, { big: 1n }).catch(note)
      await ctx.call(fast, 'x'.repeat(1_100_000)).catch(note)
      await ctx.call(fast, {}, { priority: 'urgent' as never }).catch(note)
      await ctx.map(add, [{ a: 1, b: 1 }, { a: 1 } as never]).catch(note)
      return [await ctx.call(add, { a: 1, b: errors.length }), ...errors.map((text) => text.split(':')[0])]
    })
    const id = await create(parent)
    await drainAnew(handler, adder)
    const refused = ['InvalidInput', 'InvalidInput', 'PermanentError', 'InvalidInput', 'InvalidInput']
    expect(JSON.parse((await recordOf(id)).result)).toEqual([6, ...refused])
    expect((await scene.broker.stats(['add', 'fast'])).map(({ succeeded }) => succeeded)).toEqual([1, 0])
  })

  test('a huge map of what is not valid is refused whole, and nothing of it is called', async () => {
    const { create, recordOf, worker } = scene
    const payloads = Array.from({ length: 2_000 }, (_, i) => ({ a: i === 1_999 ? 'x' : i, b: 1 }))
    const id = await create(parent)
    await worker([implement(parent, (_, ctx) => ctx.map(add, payloads as never)), adder]).drain()
    expect(await recordOf(id)).toMatchObject({ error: { type: 'invalid_input' } })
    expect((await recordOf(id)).result).toContain('payloads.1999.a')
    expect((await scene.broker.stats(['add']))[0]).toMatchObject({ queued: 0, succeeded: 0 })
  })

  describe('what goes on by something outside while an entry is open is refused at once:', () => {
    const outside = async () => {
      for (let turn = 0; turn < 5; turn++) await nextTurn()
    }
    const handlers: Record<string, (ctx: Context) => Promise<unknown>> = {
      'calls after a fetch in each branch': (ctx) =>
        Promise.all([1, 2].map((n) => outside().then(() => ctx.call(fast, n)))),
      'a race with a fetch': (ctx) => Promise.race([ctx.call(slow, 1), outside().then(() => 'fetched')]),
      'a call in a step': (ctx) => ctx.step('outer', () => ctx.call(fast, 1)),
      'a step in a step': (ctx) => ctx.step('outer', () => outside().then(() => ctx.step('inner', () => 1))),
    }
    const lateOne = implement(slow, async () => {
      for (let turn = 0; turn < 50; turn++) await nextTurn()
    })
    test.each(Object.keys(handlers))('%s', async (name) => {
      const { create, recordOf, worker } = scene
      const id = await create(parent)
      const handler = implement(parent, (_, ctx) => handlers[name]?.(ctx))
      await worker([handler, fastOne, lateOne]).drain()
      const record = await recordOf(id)
      expect(record).toMatchObject({ status: 'failed', attempt: 1 })
      expect(record.error?.type).toMatch(/outside_wait|call_in_step/)
      expect(record.result).toMatch(/ctx\.step/)
    })
  })

  test('an outside wait beside a branch that is busy all the time is found out, and never takes its place', async () => {
    const { clock, create, recordOf, worker } = scene
    for (let time = 0; time < 10; time++) {
      const handler = implement(parent, async (_, ctx) => {
        const audit = async () => {
          for (let i = 0; i < 20; i++) await ctx.step('save', () => `audit ${i}`)
        }
        const pay = async () => {
          // Real timers: they come in amid the turns of the deliveries.
          await new Promise((resolve) => setTimeout(resolve, 1))
          return ctx.step('save', () => 'payment')
        }
        const [, receipt] = await Promise.all([audit(), pay()])
        await ctx.sleep(100)
        return receipt
      })
      const id = await create(parent)
      await worker([handler]).drain()
      clock.advance(200)
      await worker([handler]).drain()
      const { result, error } = await recordOf(id)
      // When the other branch has ended first, the wait stands alone.
      if (error) expect(error.type).toBe('outside_wait')
      else expect(result).toBe('payment')
    }
  })

  test('an outside wait that is over before the turn in which its handler began is not taken for a part of that', async () => {
    const handler = implement(parent, async (_, ctx) => {
      const audit = async () => {
        for (let i = 0; i < 3; i++) await ctx.step('save', () => `audit ${i}`)
      }
      const pay = async () => {
        await new Promise((resolve) => setTimeout(resolve, 1))
        return ctx.step('save', () => 'payment')
      }
      const both = Promise.all([audit(), pay()])
      const until = performance.now() + 5
      while (performance.now() < until);
      return both
    })
    const id = await scene.create(parent)
    await scene.worker([handler]).drain()
    expect(await scene.recordOf(id)).toMatchObject({ error: { type: 'outside_wait' } })
  })

  test('an effect runs in the AsyncLocalStorage of its handler', async () => {
    const { create, recordOf, worker } = scene
    const storage = new AsyncLocalStorage<string>()
    const handler = implement(parent, (_, ctx) =>
      storage.run('request 7', () => ctx.step('x', () => storage.getStore() ?? 'lost')),
    )
    const id = await create(parent)
    await worker([handler]).drain()
    expect(await recordOf(id)).toMatchObject({ result: 'request 7' })
  })

  test('an outside wait with nothing else open is certain of its place', async () => {
    const { create, recordOf } = scene
    const handler = implement(parent, async (_, ctx) => {
      await nextTurn().then(nextTurn)
      const first = await ctx.call(fast, 'a')
      await nextTurn().then(nextTurn)
      return [first, await ctx.call(fast, 'b')]
    })
    const id = await create(parent)
    await drainAnew(handler, fastOne)
    expect(await recordOf(id)).toMatchObject({ result: '["a","b"]' })
  })
})
