import { expect } from 'bun:test'
import type { Claimed } from '../broker.ts'
import { call, cancellation, type Define, end, ended, ids, LEASE_MS, recordOf, retryAt } from './scene.ts'

export function testRetry(test: Define): void {
  test('queues an ended task again, from attempt 1', async ({ broker, retry, clock, run, task, live, claimAll }) => {
    for (const state of ['failed', 'succeeded'] as const) {
      const first = await run()
      await broker.settle([retryAt(first, clock.now() + 1)])
      clock.advance(1)
      const [second] = (await claimAll({ takeBack: true })) as [Claimed]
      await broker.settle([end(second, { state })])

      const envelope = `{"task_id":"${first.id}","v":1,"payload":"again"}`
      const again = { ...task({ id: first.id, envelope }), ...ended(first, { state }) }
      expect(await retry([again])).toEqual([first.id])
      expect(await live(first.id)).toMatchObject({ state: 'queued', attempts: 0, pending: 0, envelope: again.envelope })
      expect(await broker.list({ kind: 'sum', state, after: [], limit: 10 })).toEqual([])
      const [third] = (await claimAll()) as [Claimed]
      expect(third).toMatchObject({ id: first.id, attempt: 1, envelope: again.envelope })
      await broker.settle([end(third)])
      await broker.remove([{ ...third, ...ended(third) }])
    }
  })

  test('queues a cancelled task again, once', async ({ broker, retry, add, live, claimAll }) => {
    const cancelled = await add()
    await broker.cancel([cancellation(cancelled)])
    expect(await retry([{ ...cancelled, ...ended(cancelled, { state: 'cancelled' }) }])).toEqual([cancelled.id])
    expect((await live(cancelled.id)).state).toBe('queued')
    expect(ids(await claimAll())).toEqual([cancelled.id])
  })

  test('queues a task that was cancelled while it ran, and its old worker is refused', async ({
    broker,
    retry,
    run,
    task,
    claimAll,
    live,
  }) => {
    const running = await run()
    await broker.cancel([cancellation(running)])
    expect(await retry([{ ...task({ id: running.id }), ...ended(running, { state: 'cancelled' }) }])).toEqual([
      running.id,
    ])
    const [again] = (await claimAll()) as [Claimed]
    expect(again).toMatchObject({ id: running.id, attempt: 1 })
    expect((await broker.settle([end(running)])).refused).toEqual([running.id])
    expect((await live(running.id)).state).toBe('running')
    expect((await broker.settle([end(again)])).refused).toEqual([])
  })

  test(
    'queues at the back',
    async ({ broker, retry, run, add, task, claimAll }) => {
      const ended = await run()
      await broker.settle([end(ended, { state: 'failed' })])
      const queued = await add()
      await retry([task({ id: ended.id })])
      expect(ids(await claimAll())).toEqual(ids([queued, ended]))
    },
    'order',
  )

  test('returns only those that were queued', async ({ broker, retry, run, add, task, live }) => {
    const ended = await run()
    await broker.settle([end(ended, { state: 'failed' })])
    const queued = await add()
    const unknown = task()
    expect(await retry([queued, unknown, task({ id: ended.id })])).toEqual([ended.id])
    expect(await broker.get([unknown.id])).toEqual([null])
    expect((await live(queued.id)).envelope).toBe(queued.envelope)
    expect(await retry([])).toEqual([])
  })

  test('leaves a running task as it is', async ({ retry, clock, run, task, live, claimAll }) => {
    const running = await run()
    expect(await retry([task({ id: running.id })])).toEqual([])
    expect((await live(running.id)).state).toBe('running')
    expect(await claimAll()).toEqual([])
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: true })).toMatchObject([{ attempt: 2 }])
  })

  test('changes nothing when it comes again', async ({ broker, retry, run, task, claimAll }) => {
    const ended = await run()
    await broker.settle([end(ended, { state: 'failed' })])
    const again = task({ id: ended.id })
    expect(await retry([again])).toEqual([ended.id])
    expect(await retry([again])).toEqual([])
    expect(ids(await claimAll())).toEqual([ended.id])
  })

  test('forgets when the record would have expired', async ({ broker, retry, clock, run, task }) => {
    const one = await run()
    const expiresAt = clock.now() + 1000
    await broker.settle([end(one, { state: 'failed', expiresAt })])
    await retry([{ ...task({ id: one.id }), ...ended(one, { state: 'failed', expiresAt }) }])
    clock.advance(2000)
    expect((await broker.sweep(100)).expired).toEqual([])
  })

  test('counts the task as queued, and no longer as failed', async ({ broker, retry, run, task }) => {
    const one = await run()
    await broker.settle([end(one, { state: 'failed' })])
    await retry([{ ...task({ id: one.id }), ...ended(one, { state: 'failed' }) }])
    expect(await broker.stats(['sum'])).toMatchObject([{ queued: 1, failed: 0, lastMinute: { failed: 0 } }])
  })

  test('keeps the history', async ({ broker, retry, run, child, task, record, live, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    const step = { id: `${parent.id}.1`, record: recordOf('step') }
    const children = [child(parent, 0)]
    await broker.settle([call(parent, { children, records: [step] })])
    await broker.settle((await claimAll()).map((one) => end(one, of)))
    const [resumed] = (await claimAll({ kinds: ['sequence'] })) as [Claimed]
    await broker.settle([end(resumed, { state: 'failed' })])

    await retry([{ ...task({ id: parent.id, kind: 'sequence' }), history: { calls: 2, steps: 1, order: '0:1' } }])
    expect(await record(`${parent.id}.0`)).toBe(recordOf(`${parent.id}.0`))
    expect(await record(step.id)).toBe(step.record)
    const [again] = (await claimAll({ kinds: ['sequence'] })) as [Claimed]
    expect(again).toMatchObject({ id: parent.id, attempt: 1, calls: 2, steps: 1, order: '0:1' })
    // Called again from the history: nothing is run twice, and there is nothing to wait for.
    await broker.settle([call(again, { children, records: [step] })])
    expect(await live(parent.id)).toMatchObject({ state: 'queued', calls: 2, steps: 1, pending: 0 })
    expect(await claimAll()).toEqual([])
  })
}
