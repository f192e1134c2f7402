import { expect } from 'bun:test'
import type { Claimed } from '../broker.ts'
import { call, cancellation, type Define, end, ended, LEASE_MS, release, retryAt } from './scene.ts'

const NONE = { lost: [], cancelled: [] }

export function testExtend(test: Define): void {
  test('moves the deadline of a lease', async ({ broker, clock, run, claimAll }) => {
    const running = await run()
    clock.advance(LEASE_MS - 1)
    expect(await broker.extend([running], LEASE_MS)).toEqual(NONE)
    clock.advance(LEASE_MS - 1)
    expect(await claimAll({ takeBack: true })).toEqual([])
    expect(await broker.extend([running], LEASE_MS)).toEqual(NONE)
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: true })).toMatchObject([{ id: running.id, attempt: 2 }])
  })

  test('extends a lease that ended when nobody took the task back', async ({ broker, clock, run, claimAll }) => {
    const running = await run()
    clock.advance(LEASE_MS)
    expect(await broker.extend([running], LEASE_MS)).toEqual(NONE)
    expect(await claimAll({ takeBack: true })).toEqual([])
  })

  test('shows progress while the task is live', async ({ broker, run, live }) => {
    const running = await run()
    await broker.extend([{ ...running, progress: { done: 3, total: 10 } }], LEASE_MS)
    expect((await live(running.id)).progress).toEqual({ done: 3, total: 10 })
    await broker.extend([running], LEASE_MS)
    expect((await live(running.id)).progress).toEqual({ done: 3, total: 10 })
    await broker.extend([{ ...running, progress: { done: 10, total: 10 } }], LEASE_MS)
    expect((await live(running.id)).progress).toEqual({ done: 10, total: 10 })
  })

  test('takes an empty batch', async ({ broker }) => {
    expect(await broker.extend([], LEASE_MS)).toEqual(NONE)
  })

  test('tells that a lease was lost to another worker, and leaves that one alone', async ({
    broker,
    clock,
    run,
    live,
    claimAll,
  }) => {
    const late = await run()
    clock.advance(LEASE_MS)
    await claimAll({ takeBack: true })
    clock.advance(LEASE_MS - 1)
    expect(await broker.extend([{ ...late, progress: { done: 1, total: 1 } }], LEASE_MS)).toEqual({
      lost: [late.id],
      cancelled: [],
    })
    expect((await live(late.id)).progress).toBeNull()
    clock.advance(1)
    expect(await claimAll({ takeBack: true })).toMatchObject([{ id: late.id, attempt: 3 }])
  })

  test('tells that a lease was lost when another worker ended the task', async ({ broker, clock, run, claimAll }) => {
    for (const state of ['succeeded', 'failed'] as const) {
      const late = await run()
      clock.advance(LEASE_MS)
      const [other] = (await claimAll({ takeBack: true })) as [Claimed]
      await broker.settle([end(other, { state })])
      expect(await broker.extend([late], LEASE_MS)).toEqual({ lost: [late.id], cancelled: [] })
    }
  })

  test('tells that a lease was lost when the task is queued, delayed or waiting', async ({
    broker,
    clock,
    add,
    claimAll,
  }) => {
    await add()
    await add()
    await add()
    const [one, two, three] = (await claimAll()) as [Claimed, Claimed, Claimed]
    await broker.settle([release(one), retryAt(two, clock.now() + 1000), call(three, { wakeAt: clock.now() + 1000 })])
    const { lost, cancelled } = await broker.extend([one, two, three], LEASE_MS)
    expect(lost.toSorted()).toEqual([one.id, two.id, three.id].toSorted())
    expect(cancelled).toEqual([])
  })

  test('tells that a task was cancelled', async ({ broker, run }) => {
    const running = await run()
    await broker.cancel([cancellation(running)])
    expect(await broker.extend([running], LEASE_MS)).toEqual({ lost: [], cancelled: [running.id] })
  })

  test('tells that a task was cancelled and removed', async ({ broker, run }) => {
    const running = await run()
    await broker.cancel([cancellation(running)])
    await broker.remove([{ ...running, ...ended(running, { state: 'cancelled' }) }])
    expect(await broker.extend([running], LEASE_MS)).toEqual({ lost: [], cancelled: [running.id] })
    expect(await broker.get([running.id])).toEqual([null])
  })

  test('extends some tasks of a claim: the others come back, and these later', async ({
    broker,
    clock,
    task,
    claimAll,
  }) => {
    await broker.enqueue(Array.from({ length: 5 }, () => task()))
    const [a, b, c, d, e] = (await claimAll()) as [Claimed, Claimed, Claimed, Claimed, Claimed]
    clock.advance(LEASE_MS / 2)
    expect(await broker.extend([b, d], LEASE_MS)).toEqual(NONE)
    await broker.settle([end(a)])
    clock.advance(LEASE_MS / 2)
    const back = await claimAll({ takeBack: true })
    expect(back.map(({ id, attempt }) => `${id} ${attempt}`).toSorted()).toEqual([`${c.id} 2`, `${e.id} 2`].toSorted())
    expect(await broker.extend([c, b], LEASE_MS)).toEqual({ lost: [c.id], cancelled: [] })
    expect((await broker.settle([end(d)])).refused).toEqual([])
    clock.advance(LEASE_MS)
    const later = await claimAll({ takeBack: true })
    expect(later.map(({ id, attempt }) => `${id} ${attempt}`).toSorted()).toEqual(
      [`${b.id} 2`, `${c.id} 3`, `${e.id} 3`].toSorted(),
    )
    expect(await broker.stats(['sum'])).toMatchObject([{ running: 3, queued: 0, succeeded: 2 }])
  })

  test('extends the leases that are held when others are not', async ({ broker, clock, add, claimAll }) => {
    await add()
    await add()
    const [held, cancelled] = (await claimAll()) as [Claimed, Claimed]
    await broker.cancel([cancellation(cancelled)])
    clock.advance(LEASE_MS - 1)
    expect(await broker.extend([cancelled, held], LEASE_MS)).toEqual({ lost: [], cancelled: [cancelled.id] })
    clock.advance(1)
    expect(await claimAll({ takeBack: true })).toEqual([])
  })
}
