import { expect } from 'bun:test'
import type { Claimed, NewTask, Retry } from '../broker.ts'
import { cancellation, type Define, end, ended, ids, LEASE_MS, recordOf } from './scene.ts'

const again = (task: NewTask, token: string | null | undefined): Retry => ({
  ...{ id: task.id, kind: task.kind, priority: task.priority, envelope: task.envelope },
  ...{ history: { calls: 0, steps: 0, order: '' }, ...ended(task, { state: 'failed' }), token: token ?? '' },
})

export function testReserve(test: Define): void {
  test('gives an ended task to one caller alone, whatever its final state', async ({ broker, run, add }) => {
    for (const state of ['succeeded', 'failed', 'cancelled'] as const) {
      const one = state === 'cancelled' ? await add() : await run()
      if (state === 'cancelled') await broker.cancel([cancellation(one)])
      else await broker.settle([end({ token: '', ...one }, { state })])
      expect(await broker.reserve([one].map(reservable), LEASE_MS)).toEqual([expect.any(String)])
      expect(await broker.reserve([one].map(reservable), LEASE_MS)).toEqual([null])
    }
  })

  test('gives no task that is live or unknown', async ({ broker, clock, run, add, task }) => {
    const tasks = [await run(), await add(), await add({ dueAt: clock.now() + 1000 }), task()]
    expect(await broker.reserve(tasks.map(reservable), LEASE_MS)).toEqual([null, null, null, null])
    expect(await broker.reserve([], LEASE_MS)).toEqual([])
  })

  test('changes nothing of the task', async ({ broker, clock, run, record, claimAll }) => {
    const one = await run()
    await broker.settle([end(one, { state: 'failed' })])
    await broker.reserve([reservable(one)], LEASE_MS)
    for (const ms of [0, LEASE_MS]) {
      clock.advance(ms)
      expect(await claimAll({ takeBack: true })).toEqual([])
      expect(await record(one.id)).toBe(recordOf(one.id, 'failed'))
    }
    expect(await broker.stats(['sum'])).toMatchObject([{ queued: 0, running: 0, failed: 1 }])
  })

  test('lets the holder alone retry', async ({ broker, run, task, claimAll }) => {
    const one = await run()
    await broker.settle([end(one, { state: 'failed' })])
    const wanted = task({ id: one.id })
    expect(await broker.retry([again(wanted, null)])).toEqual([])
    const [token] = await broker.reserve([reservable(one)], LEASE_MS)
    expect(await broker.retry([again(wanted, null), again(wanted, '1')])).toEqual([])
    expect(await broker.retry([again(wanted, token)])).toEqual([one.id])
    expect(ids(await claimAll())).toEqual([one.id])
  })

  test('gives the task to another when the reservation is over', async ({ broker, clock, run, task }) => {
    const one = await run()
    await broker.settle([end(one, { state: 'failed' })])
    const [first] = await broker.reserve([reservable(one)], LEASE_MS)
    clock.advance(LEASE_MS + 1)
    const [second] = await broker.reserve([reservable(one)], LEASE_MS)
    expect(second).toEqual(expect.any(String))
    expect(await broker.reserve([{ ...reservable(one), token: first ?? '' }], LEASE_MS)).toEqual([null])
    expect(await broker.retry([again(task({ id: one.id }), first)])).toEqual([])
    expect(await broker.retry([again(task({ id: one.id }), second)])).toEqual([one.id])
  })

  test('goes on for longer with its token', async ({ broker, clock, run, task }) => {
    const one = await run()
    await broker.settle([end(one, { state: 'failed' })])
    let token: string | null = null
    for (let i = 0; i < 3; i++) {
      ;[token = null] = await broker.reserve([{ ...reservable(one), token }], LEASE_MS)
      expect(token).toEqual(expect.any(String))
      clock.advance(LEASE_MS - 1)
    }
    expect(await broker.reserve([reservable(one)], LEASE_MS)).toEqual([null])
    expect(await broker.retry([again(task({ id: one.id }), token)])).toEqual([one.id])
  })

  test('is over when the task has been retried', async ({ broker, run, task, claimAll }) => {
    const one = await run()
    await broker.settle([end(one, { state: 'failed' })])
    const [token] = await broker.reserve([reservable(one)], LEASE_MS)
    await broker.retry([again(task({ id: one.id }), token)])
    const [second] = (await claimAll()) as [Claimed]
    await broker.settle([end(second, { state: 'failed' })])
    expect(await broker.retry([again(task({ id: one.id }), token)])).toEqual([])
    expect(await broker.reserve([reservable(one)], LEASE_MS)).toEqual([expect.any(String)])
  })
}

const reservable = ({ id }: { id: string }) => ({ id })
