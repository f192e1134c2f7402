import { expect } from 'bun:test'
import { call, cancellation, type Define, end, ids, recordOf } from './scene.ts'

export function testRemove(test: Define): void {
  test('forgets a final record', async ({ broker, run }) => {
    for (const state of ['succeeded', 'failed'] as const) {
      const ended = await run()
      await broker.settle([end(ended, { state })])
      await broker.remove([ended])
      expect(await broker.get([ended.id])).toEqual([null])
      expect(await broker.list({ kind: 'sum', state, offset: 0, limit: 10 })).toEqual([])
    }
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 0, failed: 0 }])
  })

  test('forgets a cancelled task', async ({ broker, add, claimAll }) => {
    const cancelled = await add()
    await broker.cancel([cancellation(cancelled)])
    await broker.remove([cancelled])
    expect(await broker.get([cancelled.id])).toEqual([null])
    expect(await broker.stats(['sum'])).toMatchObject([{ cancelled: 0 }])
    expect(await claimAll()).toEqual([])
  })

  test('leaves a live task as it is', async ({ broker, clock, add, run, live }) => {
    const running = await run()
    const queued = await add()
    const delayed = await add({ dueAt: clock.now() + 1000 })
    const before = await Promise.all([running, queued, delayed].map(({ id }) => live(id)))
    await broker.remove([running, queued, delayed])
    expect(await Promise.all([running, queued, delayed].map(({ id }) => live(id)))).toEqual(before)
    expect((await broker.settle([end(running)])).refused).toEqual([])
  })

  test('makes nothing of an unknown id, nor of one that was removed before', async ({ broker, run, task }) => {
    const ended = await run()
    await broker.settle([end(ended)])
    await broker.remove([task(), ended, { id: 'unknown', kind: null }])
    await broker.remove([ended])
    await broker.remove([])
    expect(await broker.get([ended.id, 'unknown'])).toEqual([null, null])
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 0 }])
  })

  test('forgets the record of a step', async ({ broker, run, record, live }) => {
    const parent = await run()
    const step = { id: `${parent.id}.0`, record: recordOf('step') }
    await broker.settle([call(parent, { records: [step], park: false })])
    expect(await record(step.id)).toBe(step.record)
    await broker.remove([{ id: step.id, kind: null }])
    expect(await broker.get([step.id])).toEqual([null])
    expect((await live(parent.id)).state).toBe('running')
  })

  test('leaves the descendants', async ({ broker, run, child, record, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.settle([call(parent, { children: [child(parent, 0)] })])
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    await broker.settle((await claimAll()).map((one) => end(one, of)))
    await broker.settle((await claimAll({ kinds: ['sequence'] })).map((one) => end(one)))
    await broker.remove([parent])
    expect(await record(`${parent.id}.0`)).toBe(recordOf(`${parent.id}.0`))
  })

  test('forgets when the record would expire', async ({ broker, clock, run }) => {
    const removed = await run()
    const kept = await run()
    const expiresAt = clock.now() + 1000
    await broker.settle([end(removed, { expiresAt }), end(kept, { expiresAt })])
    await broker.remove([{ ...removed, expiresAt }])
    clock.advance(2000)
    expect((await broker.sweep(100)).expired).toEqual([kept.id])
  })

  test('lets the id be used again', async ({ broker, run, claimAll, task }) => {
    const ended = await run()
    await broker.settle([end(ended)])
    await broker.remove([ended])
    expect(await broker.enqueue([task({ id: ended.id })])).toEqual([{ id: ended.id, created: true }])
    expect(ids(await claimAll())).toEqual([ended.id])
  })
}
