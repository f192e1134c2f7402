import { expect } from 'bun:test'
import type { Claimed } from '../broker.ts'
import { call, cancellation, type Define, end, LEASE_MS, recordOf, request } from './scene.ts'

export function testCancel(test: Define): void {
  test('ends a queued task', async ({ broker, add, record, claimAll }) => {
    const queued = await add()
    expect(await broker.cancel([cancellation(queued)])).toEqual([{ id: queued.id, cancelled: true, calls: 0 }])
    expect(await record(queued.id)).toBe(recordOf(queued.id, 'cancelled'))
    expect(await claimAll()).toEqual([])
  })

  test('ends a running task, and its worker is refused', async ({ broker, clock, run, record, claimAll }) => {
    const running = await run()
    expect(await broker.cancel([cancellation(running)])).toEqual([{ id: running.id, cancelled: true, calls: 0 }])
    expect((await broker.settle([end(running)])).refused).toEqual([running.id])
    expect(await record(running.id)).toBe(recordOf(running.id, 'cancelled'))
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: true })).toEqual([])
  })

  test('ends a delayed task', async ({ broker, clock, add, record, claimAll }) => {
    const delayed = await add({ dueAt: clock.now() + 1000 })
    expect(await broker.cancel([cancellation(delayed)])).toEqual([{ id: delayed.id, cancelled: true, calls: 0 }])
    clock.advance(1000)
    expect(await claimAll({ takeBack: true })).toEqual([])
    expect(await record(delayed.id)).toBe(recordOf(delayed.id, 'cancelled'))
  })

  test('ends a waiting task, tells how long its history is and leaves its children', async ({
    broker,
    run,
    child,
    record,
    live,
    claimAll,
  }) => {
    const parent = await run({ kind: 'sequence' })
    const step = { id: `${parent.id}.1`, record: recordOf('step') }
    await broker.settle([call(parent, { children: [child(parent, 0)], records: [step] })])
    expect(await broker.cancel([cancellation(parent)])).toEqual([{ id: parent.id, cancelled: true, calls: 2 }])
    expect((await live(`${parent.id}.0`)).state).toBe('queued')
    const [only] = (await claimAll()) as [Claimed]
    await broker.settle([end(only, { parent: { id: parent.id, kind: 'sequence' } })])
    expect(await claimAll({ kinds: ['sequence'], takeBack: true })).toEqual([])
    expect(await record(parent.id)).toBe(recordOf(parent.id, 'cancelled'))
  })

  test('ends a sleeping task', async ({ broker, clock, run, record, claimAll }) => {
    const sleeper = await run()
    await broker.settle([call(sleeper, { wakeAt: clock.now() + 1000 })])
    await broker.cancel([cancellation(sleeper)])
    clock.advance(1000)
    expect(await claimAll({ takeBack: true })).toEqual([])
    expect(await record(sleeper.id)).toBe(recordOf(sleeper.id, 'cancelled'))
  })

  test('leaves a final task as it is', async ({ broker, run, record }) => {
    const ended = await run()
    await broker.settle([end(ended)])
    expect(await broker.cancel([cancellation(ended)])).toMatchObject([{ id: ended.id, cancelled: false }])
    expect(await record(ended.id)).toBe(recordOf(ended.id))
  })

  test('makes nothing of an unknown id', async ({ broker, task }) => {
    const unknown = task()
    expect(await broker.cancel([cancellation(unknown)])).toMatchObject([{ id: unknown.id, cancelled: false }])
    expect(await broker.get([unknown.id])).toEqual([null])
  })

  test('answers in the order of the tasks', async ({ broker, add, task }) => {
    const tasks = [await add(), task(), await add({ kind: 'chat' })]
    const answers = await broker.cancel(tasks.map((one) => cancellation(one)))
    expect(answers.map(({ id, cancelled }) => ({ id, cancelled }))).toEqual(
      tasks.map(({ id }, i) => ({ id, cancelled: i !== 1 })),
    )
  })

  test('changes nothing when it comes again', async ({ broker, add, record, child, run, live }) => {
    const queued = await add({ kind: 'chat' })
    await broker.cancel([cancellation(queued)])
    expect(await broker.cancel([cancellation(queued, { record: 'other' })])).toMatchObject([{ cancelled: false }])
    expect(await record(queued.id)).toBe(recordOf(queued.id, 'cancelled'))

    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)] as const
    await broker.settle([call(parent, { children })])
    await broker.cancel([cancellation(children[0])])
    await broker.cancel([cancellation(children[0])])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1 })
  })

  test('tells the parent that its child has ended', async ({ broker, run, child, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)] as const
    await broker.settle([call(parent, { children })])
    await broker.cancel([cancellation(children[0])])
    expect(await live(parent.id)).toMatchObject({ state: 'waiting', pending: 1 })
    await broker.cancel([cancellation(children[1])])
    expect(await live(parent.id)).toMatchObject({ state: 'queued', pending: 0 })
    expect(await claimAll({ kinds: ['sequence'] })).toMatchObject([{ id: parent.id, attempt: 1, calls: 2 }])
  })

  test('ends a parent and its children in one call', async ({ broker, run, child, record, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)]
    await broker.settle([call(parent, { children })])
    const all = [{ ...parent, parent: undefined }, ...children]
    const answers = await broker.cancel(all.map((one) => cancellation(one)))
    expect(answers.every((answer) => answer.cancelled)).toBe(true)
    for (const { id } of all) expect(await record(id)).toBe(recordOf(id, 'cancelled'))
    expect(await claimAll({ kinds: ['sequence', 'sum'], takeBack: true })).toEqual([])
  })

  test('is followed by other tasks of the kind', async ({ broker, task, claimAll }) => {
    const tasks = Array.from({ length: 50 }, () => task())
    await broker.enqueue(tasks)
    await broker.cancel(tasks.slice(0, 49).map((one) => cancellation(one)))
    expect((await broker.claim(request({ limit: 1 }))).tasks).toMatchObject([{ id: tasks[49]?.id }])
    expect(await claimAll()).toEqual([])
  })
}
