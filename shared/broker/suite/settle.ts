import { expect } from 'bun:test'
import type { ParentRef } from '#shared/task/task.ts'
import type { Claimed } from '../broker.ts'
import { call, cancellation, type Define, end, ids, LEASE_MS, recordOf, release, request, retryAt } from './scene.ts'

const parentRef = ({ id, kind }: Claimed): { parent: ParentRef } => ({ parent: { id, kind } })

export function testSettle(test: Define): void {
  test('ends a task with its record', async ({ broker, clock, run, claimAll }) => {
    const ended = await run()
    expect(await broker.settle([end(ended)])).toEqual({ refused: [], next: null })
    expect(await broker.get([ended.id])).toEqual([{ id: ended.id, record: recordOf(ended.id), live: null }])
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: true })).toEqual([])
  })

  test('keeps every character of a record', async ({ broker, run, record }) => {
    const ended = await run()
    const text = JSON.stringify({ result: `"\\ \n \u0001 ü€😀 \u2028 ${'x'.repeat(1024 * 1024)}`, status_code: 200 })
    await broker.settle([end(ended, { record: text })])
    expect(await record(ended.id)).toBe(text)
  })

  test('takes no outcomes', async ({ broker }) => {
    expect(await broker.settle([])).toEqual({ refused: [], next: null })
  })

  test('refuses an outcome with another token, and changes nothing', async ({ broker, run, child, live }) => {
    const running = await run()
    const before = await live(running.id)
    const stranger = { ...running, token: 'not-the-token' }
    const outcomes = [
      end(stranger),
      retryAt(stranger, 0),
      release(stranger),
      call(stranger, { children: [child(running, 0)], records: [{ id: `${running.id}.1`, record: 'step' }] }),
    ]
    for (const outcome of outcomes) expect((await broker.settle([outcome])).refused).toEqual([running.id])
    expect(await live(running.id)).toEqual(before)
    expect(await broker.get([`${running.id}.0`, `${running.id}.1`])).toEqual([null, null])
    expect((await broker.settle([end(running)])).refused).toEqual([])
  })

  test('refuses an outcome for a task that is not running, or unknown', async ({ broker, add, live, task }) => {
    const queued = await add()
    const unknown = task()
    const { refused } = await broker.settle([end({ ...queued, token: '' }), end({ ...unknown, token: '' })])
    expect(refused.toSorted()).toEqual([queued.id, unknown.id].toSorted())
    expect((await live(queued.id)).state).toBe('queued')
    expect(await broker.get([unknown.id])).toEqual([null])
  })

  test('takes the other outcomes when one is refused', async ({ broker, task, claimAll, record, live }) => {
    await broker.enqueue([task(), task(), task()])
    const [first, second, third] = (await claimAll()) as [Claimed, Claimed, Claimed]
    const { refused } = await broker.settle([end(first), end({ ...second, token: 'x' }), end(third)])
    expect(refused).toEqual([second.id])
    expect(await record(first.id)).toBe(recordOf(first.id))
    expect(await record(third.id)).toBe(recordOf(third.id))
    expect((await live(second.id)).state).toBe('running')
  })

  test('takes an outcome after the lease ended when nobody took the task back', async ({
    broker,
    clock,
    run,
    record,
  }) => {
    const late = await run()
    clock.advance(LEASE_MS * 2)
    expect((await broker.settle([end(late)])).refused).toEqual([])
    expect(await record(late.id)).toBe(recordOf(late.id))
  })

  test('delays a task that is to be retried, its attempt used up', async ({ broker, clock, run, live, claimAll }) => {
    const failed = await run()
    const at = clock.now() + 5000
    expect((await broker.settle([retryAt(failed, at)])).refused).toEqual([])
    expect(await live(failed.id)).toMatchObject({ state: 'delayed', attempts: 1 })
    clock.advance(4999)
    expect(await claimAll({ takeBack: true })).toEqual([])
    clock.advance(1)
    expect(await claimAll({ takeBack: true })).toMatchObject([{ id: failed.id, attempt: 2 }])
    expect(await live(failed.id)).toMatchObject({ state: 'running', attempts: 1 })
  })

  test('gives a task that is tried again the envelope that the outcome brings, whatever its characters', async ({
    broker,
    clock,
    run,
    live,
    claimAll,
  }) => {
    const failed = await run()
    for (const more of [' "\\ \n \u0001 ü€😀 \u2028', 'x'.repeat(1024 * 1024), '']) {
      const envelope = `{"task_id":"${failed.id}","v":1,"payload":${JSON.stringify(more)}\n}`
      const [held = failed] = await claimAll()
      expect((await broker.settle([retryAt(held, clock.now() + 1, envelope)])).refused).toEqual([])
      expect(await live(failed.id)).toMatchObject({ state: 'delayed', envelope })
      clock.advance(1)
      const [again] = await claimAll({ takeBack: true })
      expect(again).toMatchObject({ id: failed.id, envelope })
      await broker.settle([release(again as Claimed)])
      expect(await live(failed.id)).toMatchObject({ state: 'queued', envelope })
    }
    expect(await broker.stats(['sum'])).toMatchObject([{ queued: 1, delayed: 0, broken: 0 }])
  })

  test('queues a released task again, its attempt not used up', async ({ broker, run, live, claimAll }) => {
    const given = await run()
    expect((await broker.settle([release(given)])).refused).toEqual([])
    expect(await live(given.id)).toMatchObject({ state: 'queued', attempts: 0 })
    expect(await claimAll()).toMatchObject([{ id: given.id, attempt: 1 }])
  })

  test('never brings a released task back a second time', async ({ broker, clock, run, claimAll, live }) => {
    const given = await run()
    await broker.settle([release(given)])
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: true, leaseMs: LEASE_MS })).toMatchObject([{ id: given.id, attempt: 1 }])
    expect((await live(given.id)).attempts).toBe(0)
  })

  test(
    'queues a released task at the front',
    async ({ broker, run, add, claimAll }) => {
      const given = await run()
      const queued = await add()
      await broker.settle([release(given)])
      expect(ids(await claimAll())).toEqual(ids([given, queued]))
    },
    'order',
  )

  test('queues the children of a task that goes on running', async ({ broker, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)]
    expect((await broker.settle([call(parent, { children, park: false })])).refused).toEqual([])
    expect(await live(parent.id)).toMatchObject({ state: 'running', calls: 2, steps: 0, pending: 2 })
    expect((await claimAll()).map(({ id, attempt, envelope }) => ({ id, attempt, envelope }))).toEqual(
      children.map(({ id, envelope }) => ({ id, attempt: 1, envelope })),
    )
    expect((await broker.settle([release(parent)])).refused).toEqual([])
  })

  test('lets a parked task wait until its last child has ended', async ({
    broker,
    clock,
    run,
    child,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1), child(parent, 2)]
    await broker.settle([call(parent, { children })])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', attempts: 0, calls: 3, pending: 3 })

    const [first, second, third] = (await claimAll()) as [Claimed, Claimed, Claimed]
    await broker.settle([end(first, parentRef(parent)), end(second, { ...parentRef(parent), state: 'failed' })])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1 })
    clock.advance(LEASE_MS - 1)
    expect(await claimAll({ kinds: ['sequence'], takeBack: true })).toEqual([])

    await broker.settle([end(third, parentRef(parent))])
    expect(await live(parent.id)).toMatchObject({ state: 'queued', pending: 0 })
    const resumed = await claimAll({ kinds: ['sequence'] })
    expect(resumed).toMatchObject([{ id: parent.id, attempt: 1, calls: 3, steps: 0, envelope: parent.envelope }])
    expect(resumed[0]?.token).not.toBe(parent.token)
  })

  test('does not take back a waiting task when its old lease would end', async ({
    broker,
    clock,
    run,
    child,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0)] })])
    clock.advance(LEASE_MS * 10)
    expect(await claimAll({ kinds: ['sequence'], takeBack: true })).toEqual([])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', attempts: 0 })
  })

  test('queues a parent once when its last children end in one call', async ({ broker, run, child, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0), child(parent, 1)] })])
    await broker.settle((await claimAll()).map((one) => end(one, parentRef(parent))))
    expect(ids(await claimAll({ kinds: ['sequence'] }))).toEqual([parent.id])
  })

  test(
    'queues a parent at the front when its last child ends',
    async ({ broker, run, add, child, claimAll }) => {
      const parent = await run({ kind: 'sequence' })
      await broker.settle([call(parent, { children: [child(parent, 0)] })])
      const queued = await add({ kind: 'sequence' })
      await broker.settle((await claimAll()).map((one) => end(one, parentRef(parent))))
      expect(ids(await claimAll({ kinds: ['sequence'] }))).toEqual(ids([parent, queued]))
    },
    'order',
  )

  test('counts children that ended before their parent parked', async ({ broker, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)]
    await broker.settle([call(parent, { children, park: false })])
    const [first, second] = (await claimAll()) as [Claimed, Claimed]
    await broker.settle([end(first, parentRef(parent))])
    expect(await live(parent.id)).toMatchObject({ state: 'running', pending: 1 })
    await broker.settle([call(parent, { children, park: true })])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1 })
    await broker.settle([end(second, parentRef(parent))])
    expect((await live(parent.id)).state).toBe('queued')
  })

  test('queues a task at once that parks when all its children have ended', async ({
    broker,
    run,
    child,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0)]
    await broker.settle([call(parent, { children, park: false })])
    await broker.settle((await claimAll()).map((one) => end(one, parentRef(parent))))
    expect((await live(parent.id)).state).toBe('running')
    expect((await broker.settle([call(parent, { children })])).refused).toEqual([])
    expect(await live(parent.id)).toMatchObject({ state: 'queued', attempts: 0, calls: 1, pending: 0 })
    expect(await claimAll({ kinds: ['sequence'] })).toMatchObject([{ id: parent.id, attempt: 1, calls: 1 }])
  })

  test('settles a parked parent and its last child in one call', async ({ broker, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0)]
    await broker.settle([call(parent, { children, park: false })])
    const [only] = (await claimAll()) as [Claimed]
    await broker.settle([call(parent, { children }), end(only, parentRef(parent))])
    expect(await live(parent.id)).toMatchObject({ state: 'queued', pending: 0 })
  })

  test('queues a task at once that parks without children', async ({ broker, run, live, claimAll }) => {
    const parent = await run()
    await broker.settle([call(parent, { records: [{ id: `${parent.id}.0`, record: 'step' }] })])
    expect((await live(parent.id)).state).toBe('queued')
    expect(await claimAll()).toMatchObject([{ id: parent.id, attempt: 1, calls: 1, steps: 1 }])
  })

  test('leaves children that are known as they are', async ({ broker, run, child, live, record, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const ended = child(parent, 0)
    const queued = child(parent, 1)
    await broker.settle([call(parent, { children: [ended, queued], park: false })])
    const claimed = await claimAll()
    const { refused } = await broker.settle(
      claimed.map((one) => (one.id === ended.id ? end(one, parentRef(parent)) : release(one))),
    )
    expect(refused).toEqual([])
    const again = [ended, queued, child(parent, 2)].map((one) => ({ ...one, fresh: false }))
    await broker.settle([call(parent, { children: again })])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', calls: 3, pending: 2 })
    expect(await record(ended.id)).toBe(recordOf(ended.id))
    expect(ids(await claimAll()).toSorted()).toEqual([`${parent.id}.1`, `${parent.id}.2`])
  })

  test('delays a child that is due in the future', async ({ broker, clock, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const later = child(parent, 0, { dueAt: clock.now() + 1000 })
    await broker.settle([call(parent, { children: [later] })])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1 })
    expect((await live(later.id)).state).toBe('delayed')
    clock.advance(1000)
    expect(ids(await claimAll({ takeBack: true }))).toEqual([later.id])
  })

  test('goes on waiting when a child is retried or released', async ({ broker, clock, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0), child(parent, 1)] })])
    const [first, second] = (await claimAll()) as [Claimed, Claimed]
    await broker.settle([
      { ...retryAt(first, clock.now() + 1000), ...parentRef(parent) },
      { ...release(second), ...parentRef(parent) },
    ])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 2 })
  })

  test('wakes a sleeping task when its time has come', async ({ broker, clock, run, live, claimAll }) => {
    const sleeper = await run()
    await broker.settle([call(sleeper, { wakeAt: clock.now() + 60_000, calls: 1, steps: 1 })])
    expect(await live(sleeper.id)).toMatchObject({ state: 'waiting', attempts: 0, pending: 0 })
    clock.advance(59_999)
    expect(await claimAll({ takeBack: true })).toEqual([])
    clock.advance(1)
    expect(await claimAll({ takeBack: true })).toMatchObject([{ id: sleeper.id, attempt: 1, calls: 1, steps: 1 }])
  })

  test('wakes a task with unfinished children when its time has come', async ({
    broker,
    clock,
    run,
    child,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0)]
    await broker.settle([call(parent, { children, wakeAt: clock.now() + 1000 })])
    clock.advance(1000)
    const [awake] = (await claimAll({ kinds: ['sequence'], takeBack: true })) as [Claimed]
    expect(awake).toMatchObject({ id: parent.id, attempt: 1 })
    expect(await live(parent.id)).toMatchObject({ state: 'running', pending: 1 })

    await broker.settle((await claimAll()).map((one) => end(one, parentRef(parent))))
    expect(await live(parent.id)).toMatchObject({ state: 'running', pending: 0 })
    expect(await claimAll({ kinds: ['sequence'] })).toEqual([])
    expect((await broker.settle([end(awake)])).refused).toEqual([])
  })

  test('wakes a task before its time when its children have ended', async ({
    broker,
    clock,
    run,
    child,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0)], wakeAt: clock.now() + 60_000 })])
    await broker.settle((await claimAll()).map((one) => end(one, parentRef(parent))))
    expect((await live(parent.id)).state).toBe('queued')
    const [awake] = (await claimAll({ kinds: ['sequence'] })) as [Claimed]
    expect(awake.id).toBe(parent.id)
    await broker.settle([end(awake)])
    clock.advance(60_000)
    expect(await claimAll({ kinds: ['sequence'], takeBack: true })).toEqual([])
  })

  test('keeps records of steps as final, in no list and no count', async ({ broker, run, record, live }) => {
    const parent = await run()
    const step = { id: `${parent.id}.0`, record: recordOf('step') }
    await broker.settle([call(parent, { records: [step], park: false })])
    expect(await record(step.id)).toBe(step.record)
    expect(await live(parent.id)).toMatchObject({ state: 'running', calls: 1, steps: 1, pending: 0 })
    expect(await broker.stats(['sum'])).toMatchObject([{ running: 1, succeeded: 0, failed: 0, cancelled: 0 }])
    expect(await broker.list({ kind: 'sum', state: 'succeeded', after: [], limit: 10 })).toEqual([])
  })

  test('keeps the records of five thousand steps in one call', async ({ broker, run, record, live }) => {
    const parent = await run()
    const records = Array.from({ length: 5_000 }, (_, n) => ({ id: `${parent.id}.${n}`, record: recordOf('step') }))
    await broker.settle([call(parent, { records, park: false })])
    expect(await live(parent.id)).toMatchObject({ calls: 5_000, steps: 5_000 })
    expect(await record(`${parent.id}.4999`)).toBe(recordOf('step'))
  })

  test('claims the next tasks in the same call', async ({ broker, add, run, live }) => {
    const first = await run()
    const second = await add()
    const { refused, next } = await broker.settle([end(first)], request())
    expect(refused).toEqual([])
    expect(ids(next?.tasks ?? [])).toEqual([second.id])
    expect((await live(second.id)).state).toBe('running')
  })

  test('claims the next tasks also when an outcome is refused', async ({ broker, add, run }) => {
    const first = await run()
    const second = await add()
    const { refused, next } = await broker.settle([end({ ...first, token: 'x' })], request())
    expect(refused).toEqual([first.id])
    expect(ids(next?.tasks ?? [])).toEqual([second.id])
  })

  test('takes back what is due when it claims the next', async ({ broker, clock, run, add }) => {
    const first = await run()
    const delayed = await add({ dueAt: clock.now() + 1000 })
    clock.advance(1000)
    const { next } = await broker.settle([end(first)], request({ takeBack: true }))
    expect(ids(next?.tasks ?? [])).toEqual([delayed.id])
  })

  test('claims a parent in the call that ends its last child', async ({ broker, run, child, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0)] })])
    const [only] = (await claimAll()) as [Claimed]
    const { next } = await broker.settle([end(only, parentRef(parent))], request({ kinds: ['sum', 'sequence'] }))
    expect(next?.tasks).toMatchObject([{ id: parent.id, attempt: 1, calls: 1 }])
  })

  test('claims children in the call that creates them', async ({ broker, run, child }) => {
    const parent = await run({ kind: 'sequence' })
    const { next } = await broker.settle([call(parent, { children: [child(parent, 0)] })], request())
    expect(ids(next?.tasks ?? [])).toEqual([`${parent.id}.0`])
  })

  test('tells each of several parents', async ({ broker, add, child, live, claimAll }) => {
    await add({ kind: 'sequence' })
    await add({ kind: 'sequence' })
    const [one, two] = (await claimAll({ kinds: ['sequence'] })) as [Claimed, Claimed]
    await broker.settle([one, two].map((parent) => call(parent, { children: [child(parent, 0), child(parent, 1)] })))
    const children = await claimAll()
    const of = (parent: Claimed) => children.filter(({ id }) => id.startsWith(`${parent.id}.`))
    await broker.settle(
      [...of(one), ...of(two).slice(0, 1)].map((task) => end(task, parentRef(task.id.startsWith(one.id) ? one : two))),
    )
    expect(await live(one.id)).toMatchObject({ state: 'queued', pending: 0 })
    expect(await live(two.id)).toMatchObject({ state: 'waiting', pending: 1 })
  })

  test('ends a child whose parent is cancelled or gone', async ({ broker, run, child, record, claimAll }) => {
    for (const remove of [false, true]) {
      const parent = await run({ kind: 'sequence' })
      await broker.settle([call(parent, { children: [child(parent, 0)] })])
      const [only] = (await claimAll()) as [Claimed]
      await broker.cancel([cancellation(parent)])
      if (remove) await broker.remove([parent])
      expect((await broker.settle([end(only, parentRef(parent))])).refused).toEqual([])
      expect(await record(only.id)).toBe(recordOf(only.id))
      expect(await claimAll({ kinds: ['sequence'] })).toEqual([])
      const [stored] = await broker.get([parent.id])
      expect(stored?.record ?? null).toBe(remove ? null : recordOf(parent.id, 'cancelled'))
    }
  })
}
