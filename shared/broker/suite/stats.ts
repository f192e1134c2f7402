import { expect } from 'bun:test'
import { encodeEnvelope } from '#shared/task/task.ts'
import type { Claimed, KindStats } from '../broker.ts'
import { call, cancellation, type Define, end, recordOf, retryAt } from './scene.ts'

const empty = (kind: string): KindStats => ({
  kind,
  queued: 0,
  running: 0,
  waiting: 0,
  delayed: 0,
  succeeded: 0,
  failed: 0,
  cancelled: 0,
  broken: 0,
  oldest: [],
  lastMinute: { succeeded: 0, failed: 0 },
})

export function testStats(test: Define): void {
  test('counts nothing of kinds without tasks', async ({ broker }) => {
    expect(await broker.stats(['sum', 'chat'])).toEqual([empty('sum'), empty('chat')])
    expect(await broker.stats([])).toEqual([])
  })

  test('counts the tasks of each kind by state', async ({ broker, clock, task, child, claimAll }) => {
    await broker.enqueue(Array.from({ length: 7 }, () => task()))
    const [running, waiting, one, two, failed, cancelled, retried] = (await claimAll()) as [
      Claimed,
      Claimed,
      Claimed,
      Claimed,
      Claimed,
      Claimed,
      Claimed,
    ]
    expect(running.attempt).toBe(1)
    const children = [child(waiting, 0, { kind: 'chat' }), child(waiting, 1, { kind: 'chat' })] as const
    await broker.settle([
      call(waiting, { children, records: [{ id: `${waiting.id}.2`, record: recordOf('step') }] }),
      end(one),
      end(two),
      end(failed, { state: 'failed' }),
      retryAt(retried, clock.now() + 1000),
    ])
    await broker.cancel([cancellation(cancelled)])
    const delayed = task({ dueAt: clock.now() + 1000 })
    const queued = task({ envelope: encodeEnvelope({ task_id: 'q1', payload: {}, created_at: 17 }), id: 'q1' })
    await broker.enqueue([delayed, queued])
    expect(await broker.stats(['sum', 'chat'])).toEqual([
      {
        ...empty('sum'),
        queued: 1,
        running: 1,
        waiting: 1,
        delayed: 2,
        succeeded: 2,
        failed: 1,
        cancelled: 1,
        oldest: [17],
        lastMinute: { succeeded: 2, failed: 1 },
      },
      { ...empty('chat'), queued: 2 },
    ])
  })

  test(
    'tells when those at the front of the three queues were created, of large ones too',
    async ({ broker, add }) => {
      const created = (id: string, created_at: number, payload: unknown = {}) => ({
        id,
        envelope: encodeEnvelope({ task_id: id, payload, created_at, priority: 'low' }),
      })
      await add({ priority: 'low', ...created('l1', 11, { text: '"created_at":99,'.repeat(10_000) }) })
      await add(created('n1', 12))
      await add(created('n2', 13))
      await add({ priority: 'high', ...created('h1', 14) })
      const [stats] = await broker.stats(['sum'])
      expect(stats?.oldest.toSorted()).toEqual([11, 12, 14])
    },
    'order',
  )

  test('tells when a large task was created, whose attempts have left long errors behind that', async ({
    broker,
    add,
  }) => {
    const id = 'large'
    const error = { type: 't'.repeat(100), message: '\u0001'.repeat(500), status_code: 500, at: 1 }
    const attempts = Array.from({ length: 10 }, (_, i) => ({ attempt: i + 1, ...error }))
    await add({ id, envelope: encodeEnvelope({ task_id: id, payload: 'x'.repeat(200_000), created_at: 7, attempts }) })
    expect((await broker.stats(['sum']))[0]?.oldest).toEqual([7])
  })

  test('tells what ended within the last minute', async ({ broker, clock, add, claimAll }) => {
    await add()
    await add()
    await add()
    const [first, second, third] = (await claimAll()) as [Claimed, Claimed, Claimed]
    await broker.settle([end(first, { endedAt: clock.now() })])
    clock.advance(30_000)
    await broker.settle([end(second, { state: 'failed', endedAt: clock.now() })])
    await broker.settle([end(third, { endedAt: clock.now() })])
    expect(await broker.stats(['sum'])).toMatchObject([{ lastMinute: { succeeded: 2, failed: 1 } }])
    clock.advance(31_000)
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 2, lastMinute: { succeeded: 1, failed: 1 } }])
    clock.advance(30_000)
    expect(await broker.stats(['sum'])).toMatchObject([
      { succeeded: 2, failed: 1, lastMinute: { succeeded: 0, failed: 0 } },
    ])
  })

  test('counts those of the last minute that ended together', async ({ broker, clock, task, claimAll }) => {
    await broker.enqueue(Array.from({ length: 450 }, () => task()))
    const tasks = await claimAll()
    const settle = (from: number, to: number) =>
      broker.settle(tasks.slice(from, to).map((one) => end(one, { endedAt: clock.now() })))
    await settle(0, 150)
    clock.advance(60_010)
    await settle(150, 151)
    clock.advance(10)
    await settle(151, 401)
    await settle(401, 402)
    await settle(402, 450)
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 450, lastMinute: { succeeded: 300 } }])
    clock.advance(59_990)
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 450, lastMinute: { succeeded: 299 } }])
    clock.advance(10)
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 450, lastMinute: { succeeded: 0 } }])
  })

  test('counts those of the last minute when many ended one by one', async ({ broker, clock, task, claimAll }) => {
    await broker.enqueue(Array.from({ length: 230 }, () => task()))
    const tasks = await claimAll()
    for (const [n, one] of tasks.entries()) await broker.settle([end(one, { endedAt: clock.now() + 10 * n })])
    clock.advance(60_100)
    expect(await broker.stats(['sum'])).toMatchObject([{ succeeded: 230, lastMinute: { succeeded: 219 } }])
  })

  test('counts an expired lease as running until it is taken back', async ({ broker, clock, run }) => {
    await run()
    clock.advance(1_000_000)
    expect(await broker.stats(['sum'])).toMatchObject([{ running: 1, queued: 0 }])
  })
}
