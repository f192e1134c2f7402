import { expect } from 'bun:test'
import { call, cancellation, type Define, end, ended, ids, recordOf } from './scene.ts'

export function testRemove(test: Define): void {
  test('forgets a final record', async ({ broker, run }) => {
    for (const state of ['succeeded', 'failed'] as const) {
      const one = await run()
      await broker.settle([end(one, { state })])
      await broker.remove([{ ...one, ...ended(one, { state }) }])
      expect(await broker.get([one.id])).toEqual([null])
      expect(await broker.list({ kind: 'sum', state, after: [], limit: 10 })).toEqual([])
    }
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 0, failed: 0 }])
  })

  test('forgets a cancelled task', async ({ broker, add, claimAll }) => {
    const cancelled = await add()
    await broker.cancel([cancellation(cancelled)])
    await broker.remove([{ ...cancelled, ...ended(cancelled, { state: 'cancelled' }) }])
    expect(await broker.get([cancelled.id])).toEqual([null])
    expect(await broker.stats(['sum'])).toMatchObject([{ cancelled: 0 }])
    expect(await claimAll()).toEqual([])
  })

  test('leaves a live task as it is', async ({ broker, clock, add, run, live }) => {
    const running = await run()
    const queued = await add()
    const delayed = await add({ dueAt: clock.now() + 1000 })
    const before = await Promise.all([running, queued, delayed].map(({ id }) => live(id)))
    expect(await broker.remove([running, queued, delayed].map((one) => ({ ...one, ...ended(one) })))).toEqual([])
    expect(await Promise.all([running, queued, delayed].map(({ id }) => live(id)))).toEqual(before)
    expect((await broker.settle([end(running)])).refused).toEqual([])
  })

  test('makes nothing of an unknown id, nor of one that was removed before', async ({ broker, run, task }) => {
    const one = await run()
    const gone = { ...one, ...ended(one) }
    await broker.settle([end(one)])
    await broker.remove([{ ...task(), ...ended(one) }, gone, { id: 'unknown' }])
    await broker.remove([gone])
    await broker.remove([])
    expect(await broker.get([one.id, 'unknown'])).toEqual([null, null])
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 0 }])
  })

  test('forgets the record of a step', async ({ broker, run, record, live }) => {
    const parent = await run()
    const step = { id: `${parent.id}.0`, record: recordOf('step') }
    await broker.settle([call(parent, { records: [step], park: false })])
    expect(await record(step.id)).toBe(step.record)
    await broker.remove([{ id: step.id }])
    expect(await broker.get([step.id])).toEqual([null])
    expect((await live(parent.id)).state).toBe('running')
  })

  test('leaves the descendants', async ({ broker, run, child, record, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0)] })])
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    await broker.settle((await claimAll()).map((one) => end(one, of)))
    await broker.settle((await claimAll({ kinds: ['sequence'] })).map((one) => end(one)))
    await broker.remove([{ ...parent, ...ended(parent) }])
    expect(await record(`${parent.id}.0`)).toBe(recordOf(`${parent.id}.0`))
  })

  test('forgets when the record would expire', async ({ broker, clock, run }) => {
    const removed = await run()
    const kept = await run()
    const expiresAt = clock.now() + 1000
    await broker.settle([end(removed, { expiresAt }), end(kept, { expiresAt })])
    await broker.remove([{ ...removed, ...ended(removed, { expiresAt }) }])
    clock.advance(2000)
    expect((await broker.sweep(100)).expired).toEqual([kept.id])
  })

  test('forgets some of those that ended together, and keeps the others', async ({ broker, clock, task, claimAll }) => {
    await broker.enqueue(Array.from({ length: 250 }, () => task()))
    const tasks = await claimAll()
    const endedAt = clock.now() + 7
    await broker.settle(tasks.map((one) => end(one, { endedAt })))
    const listed = async () => ids(await broker.list({ kind: 'sum', state: 'succeeded', after: [], limit: 1_000 }))
    const gone = tasks.filter((_, n) => n % 3 > 0)
    await broker.remove(gone.map((one) => ({ ...one, ...ended(one, { at: endedAt }) })))
    expect((await listed()).toSorted()).toEqual(ids(tasks.filter((_, n) => n % 3 === 0)).toSorted())
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: tasks.length - gone.length }])
    await broker.remove(tasks.map((one) => ({ ...one, ...ended(one, { at: endedAt }) })))
    expect(await listed()).toEqual([])
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 0 }])
  })

  test('lets the id be used again', async ({ broker, run, claimAll, task }) => {
    const one = await run()
    await broker.settle([end(one)])
    await broker.remove([{ ...one, ...ended(one) }])
    expect(await broker.enqueue([task({ id: one.id })])).toEqual([{ id: one.id, created: true }])
    expect(ids(await claimAll())).toEqual([one.id])
  })
}
