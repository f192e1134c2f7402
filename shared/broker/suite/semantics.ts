import { expect } from 'bun:test'
import { StoreUnavailable } from '#shared/task/errors.ts'
import type { Claimed } from '../broker.ts'
import { call, cancellation, type Define, end, ids, LEASE_MS, recordOf, release, request, retryAt } from './scene.ts'

/** What no method shows alone. */
export function testSemantics(test: Define): void {
  test('runs a task again when its worker died, and refuses the dead one', async ({
    broker,
    clock,
    run,
    record,
    claimAll,
  }) => {
    const dead = await run()
    clock.advance(LEASE_MS)
    const [other] = (await claimAll({ takeBack: true })) as [Claimed]
    expect(other).toMatchObject({ id: dead.id, attempt: 2 })
    expect((await broker.settle([end(dead, { record: 'late' })])).refused).toEqual([dead.id])
    expect((await broker.settle([end(other)])).refused).toEqual([])
    expect((await broker.settle([end(dead, { record: 'later' })])).refused).toEqual([dead.id])
    expect(await record(dead.id)).toBe(recordOf(dead.id))
  })

  test('refuses every outcome of a worker that lost its lease', async ({
    broker,
    clock,
    run,
    child,
    live,
    claimAll,
  }) => {
    const late = await run()
    clock.advance(LEASE_MS)
    await claimAll({ takeBack: true })
    const before = await live(late.id)
    for (const outcome of [retryAt(late, 0), release(late), call(late, { children: [child(late, 0)] })]) {
      expect((await broker.settle([outcome])).refused).toEqual([late.id])
    }
    expect(await live(late.id)).toEqual(before)
    expect(await broker.get([`${late.id}.0`])).toEqual([null])
  })

  test('commits a task once when two workers settle it at once', async ({ broker, clock, run, claimAll, record }) => {
    const first = await run()
    clock.advance(LEASE_MS)
    const [second] = (await claimAll({ takeBack: true })) as [Claimed]
    const settled = await Promise.all([
      broker.settle([end(first, { record: 'first' })]),
      broker.settle([end(second, { record: 'second' })]),
    ])
    expect(settled.map(({ refused }) => refused.length)).toEqual([1, 0])
    expect(await record(first.id)).toBe('second')
  })

  test('changes nothing when a settle whose answer was lost is sent again', async ({
    broker,
    clock,
    task,
    child,
    claimAll,
  }) => {
    await broker.enqueue(Array.from({ length: 4 }, () => task({ kind: 'sequence' })))
    const [ended, retried, released, parent] = (await claimAll({ kinds: ['sequence'] })) as [
      Claimed,
      Claimed,
      Claimed,
      Claimed,
    ]
    const outcomes = [
      end(ended),
      retryAt(retried, clock.now() + 1000),
      release(released),
      call(parent, { children: [child(parent, 0), child(parent, 1)] }),
    ]
    await broker.settle(outcomes)
    const all = [...ids([ended, retried, released, parent]), `${parent.id}.0`, `${parent.id}.1`]
    const before = [await broker.get(all), await broker.stats(['sequence', 'sum'])]
    await broker.settle(outcomes)
    expect([await broker.get(all), await broker.stats(['sequence', 'sum'])]).toEqual(before)
    expect(ids(await claimAll({ kinds: ['sequence'] }))).toEqual([released.id])
    expect(ids(await claimAll()).toSorted()).toEqual([`${parent.id}.0`, `${parent.id}.1`])
  })

  test('counts a child down once when its end is reported again', async ({ broker, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0), child(parent, 1)] })])
    const [first] = (await claimAll()) as [Claimed]
    const outcome = end(first, { parent: { id: parent.id, kind: 'sequence' } })
    await broker.settle([outcome])
    await broker.settle([outcome])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1 })
  })

  test('creates no second child when a parent died after it had called', async ({
    broker,
    clock,
    run,
    child,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)]
    await broker.settle([call(parent, { children, park: false })])
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    const [first] = (await claimAll()) as [Claimed]
    await broker.settle([end(first, of)])

    clock.advance(LEASE_MS)
    const [again] = (await claimAll({ kinds: ['sequence'], takeBack: true })) as [Claimed]
    expect(again).toMatchObject({ id: parent.id, attempt: 2, calls: 2 })
    await broker.settle([call(again, { children })])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1, attempts: 1 })
    const rest = await claimAll({ takeBack: true })
    expect(rest).toHaveLength(1)
    await broker.settle(rest.map((one) => end(one, of)))
    expect(await claimAll({ kinds: ['sequence'] })).toMatchObject([{ id: parent.id, attempt: 2, calls: 2 }])
  })

  test('keeps the attempt of a parent over many rounds', async ({ broker, run, child, claimAll }) => {
    let parent = await run({ kind: 'sequence' })
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    for (let n = 0; n < 5; n++) {
      await broker.settle([call(parent, { children: [child(parent, n)], calls: n + 1 })])
      await broker.settle((await claimAll()).map((one) => end(one, of)))
      const [resumed] = (await claimAll({ kinds: ['sequence'] })) as [Claimed]
      expect(resumed).toMatchObject({ id: parent.id, attempt: 1, calls: n + 1 })
      parent = resumed
    }
  })

  test('ends a tree of three levels from its leaves', async ({ broker, run, child, record, claimAll }) => {
    const root = await run({ kind: 'a' })
    await broker.settle([call(root, { children: [child(root, 0, { kind: 'b' }), child(root, 1, { kind: 'b' })] })])
    for (const middle of await claimAll({ kinds: ['b'] })) {
      await broker.settle([
        call(middle, { parent: { id: root.id, kind: 'a' }, children: [child(middle, 0), child(middle, 1)] }),
      ])
    }
    const kinds = ['a', 'b', 'sum']
    const order: string[] = []
    let claim = await broker.claim(request({ kinds, limit: 1 }))
    while (claim.tasks.length > 0) {
      order.push(...claim.tasks.map((one) => one.kind))
      const outcomes = claim.tasks.map((one) => {
        const at = one.id.lastIndexOf('.')
        const kind = one.kind === 'sum' ? 'b' : 'a'
        return end(one, at < 0 ? {} : { parent: { id: one.id.slice(0, at), kind } })
      })
      claim = (await broker.settle(outcomes, request({ kinds, limit: 1 }))).next ?? { tasks: [], nextDueAt: null }
    }
    expect(order.filter((kind) => kind === 'sum')).toHaveLength(4)
    expect(order.filter((kind) => kind === 'b')).toHaveLength(2)
    expect(order.at(-1)).toBe('a')
    for (const id of [root.id, `${root.id}.0`, `${root.id}.1`, `${root.id}.1.1`])
      expect(await record(id)).toBe(recordOf(id))
  })

  test('ends a fan-out that came in several calls', async ({ broker, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const children = Array.from({ length: 1000 }, (_, n) => child(parent, n))
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    for (let from = 0; from < 1000; from += 250) {
      const chunk = children.slice(from, from + 250)
      const { refused } = await broker.settle([
        call(parent, { children: chunk, calls: from + 250, park: from === 750 }),
      ])
      expect(refused).toEqual([])
      // Some end while the parent still calls.
      const { tasks } = await broker.claim(request({ limit: 50 }))
      await broker.settle(tasks.map((one) => end(one, of)))
    }
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', calls: 1000 })
    await broker.settle((await claimAll()).map((one) => end(one, of)))
    expect(await live(parent.id)).toMatchObject({ state: 'queued', pending: 0 })
    expect(await broker.stats(['sum'])).toMatchObject([{ queued: 0, running: 0, succeeded: 1000 }])
  })

  test('cancels a tree level by level while it is running', async ({ broker, run, child, claimAll }) => {
    const root = await run({ kind: 'a' })
    const middle = child(root, 0, { kind: 'b' })
    await broker.settle([call(root, { children: [middle] })])
    const [running] = (await claimAll({ kinds: ['b'] })) as [Claimed]
    const leaf = child(running, 0)
    await broker.settle([call(running, { parent: middle.parent, children: [leaf] })])
    await broker.cancel([cancellation({ ...root, parent: undefined })])
    await broker.cancel([cancellation(middle)])
    await broker.cancel([cancellation(leaf)])
    expect(await claimAll({ kinds: ['a', 'b', 'sum'], takeBack: true })).toEqual([])
    expect(await broker.stats(['a', 'b', 'sum'])).toMatchObject(
      ['a', 'b', 'sum'].map((kind) => ({ kind, queued: 0, running: 0, waiting: 0, cancelled: 1 })),
    )
  })

  test('answers get in the order of the ids, null for the unknown and twice for what is asked twice', async ({
    broker,
    add,
    run,
  }) => {
    const ended = await run()
    await broker.settle([end(ended)])
    const queued = await add()
    const found = await broker.get([queued.id, 'unknown', ended.id, queued.id])
    expect(found.map((one) => one?.id ?? null)).toEqual([queued.id, null, ended.id, queued.id])
    const [first, , , last] = found
    expect<unknown>(first).toEqual(last)
    expect(await broker.get([])).toEqual([])
  })

  test('rejects a time that is no finite number, and does nothing', async ({ broker, run, task, live }) => {
    const running = await run()
    const [other, child] = [task(), task()]
    const before = await live(running.id)
    const ended = { kind: 'sum', state: 'failed', at: null } as const
    for (const time of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const calls = [
        broker.enqueue([other, { ...child, dueAt: time }]),
        broker.claim(request({ leaseMs: time })),
        broker.settle([end(running, { endedAt: time })]),
        broker.settle([end(running, { expiresAt: time })]),
        broker.settle([end(running)], request({ leaseMs: time })),
        broker.settle([retryAt(running, time)]),
        broker.settle([call(running, { wakeAt: time })]),
        broker.settle([call(running, { children: [{ ...child, dueAt: time }] })]),
        broker.extend([running], time),
        broker.cancel([cancellation(running, { endedAt: time })]),
        broker.cancel([cancellation(running, { expiresAt: time })]),
        broker.remove([{ id: running.id, ended: { ...ended, expiresAt: time } }]),
        broker.reserve([other], time),
        broker.retry([
          {
            ...other,
            token: '-',
            history: { calls: 0, steps: 0, order: '' },
            ended: { ...ended, at: time, expiresAt: null },
          },
        ]),
      ]
      for (const one of calls) await expect(one).rejects.toBeInstanceOf(TypeError)
    }
    expect(await live(running.id)).toEqual(before)
    expect(await broker.get(ids([other, child]))).toEqual([null, null])
  })

  test('answers a ping', async ({ broker }) => {
    expect(await broker.ping()).toBeUndefined()
  })

  test('rejects calls after it was closed, which may happen twice', async ({ broker }) => {
    await broker.close()
    await broker.close()
    await expect(broker.ping()).rejects.toBeInstanceOf(StoreUnavailable)
    await expect(broker.get(['any'])).rejects.toBeInstanceOf(StoreUnavailable)
    await expect(broker.claim(request())).rejects.toBeInstanceOf(StoreUnavailable)
  })

  test(
    'shows the same tasks to another connection',
    async ({ broker, again, clock, add, run, record }) => {
      const running = await run()
      const queued = await add()
      const delayed = await add({ dueAt: clock.now() + 1000 })
      const other = await again()
      const all = ids([running, queued, delayed])
      expect(await other.get(all)).toEqual(await broker.get(all))
      expect((await other.settle([end(running)])).refused).toEqual([])
      expect(await record(running.id)).toBe(recordOf(running.id))
      expect(ids((await other.claim(request())).tasks)).toEqual([queued.id])
      expect((await broker.claim(request())).tasks).toEqual([])
    },
    'secondConnection',
  )
}
