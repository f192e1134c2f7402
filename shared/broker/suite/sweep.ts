import { expect } from 'bun:test'
import { call, cancellation, type Define, end, ended, recordOf } from './scene.ts'

export function testSweep(test: Define): void {
  test('finds roots whose record has expired', async ({ broker, clock, run, record }) => {
    const ended = await run()
    await broker.settle([end(ended, { expiresAt: clock.now() + 1000 })])
    clock.advance(999)
    expect(await broker.sweep(100)).toEqual({ expired: [], foreign: [] })
    clock.advance(2)
    expect(await broker.sweep(100)).toEqual({ expired: [ended.id], foreign: [] })
    // It forgets nothing.
    expect(await record(ended.id)).toBe(recordOf(ended.id))
  })

  test('finds failed and cancelled tasks too', async ({ broker, clock, run, add }) => {
    const failed = await run()
    await broker.settle([end(failed, { state: 'failed', expiresAt: clock.now() + 1000 })])
    const queued = await add()
    await broker.cancel([cancellation(queued, { expiresAt: clock.now() + 2000 })])
    clock.advance(3000)
    expect((await broker.sweep(100)).expired.toSorted()).toEqual([failed.id, queued.id].toSorted())
  })

  test('never finds a record that is kept', async ({ broker, clock, run }) => {
    await broker.settle([end(await run(), { expiresAt: null })])
    clock.advance(1e10)
    expect(await broker.sweep(100)).toEqual({ expired: [], foreign: [] })
  })

  test('never finds a live task, a step or a child', async ({ broker, clock, run, child, add, claimAll }) => {
    const expiresAt = clock.now() + 1000
    const parent = await run({ kind: 'sequence' })
    const children = [child(parent, 0), child(parent, 1)] as const
    const records = [{ id: `${parent.id}.2`, record: recordOf('step') }]
    await broker.settle([call(parent, { children, records })])
    await broker.cancel([cancellation(children[1], { expiresAt })])
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    await broker.settle((await claimAll()).map((one) => end(one, { ...of, expiresAt })))
    await add({ kind: 'chat' })
    clock.advance(1e10)
    expect(await broker.sweep(100)).toEqual({ expired: [], foreign: [] })
  })

  test('finds those that expire together, without those that were removed or retried', async ({
    broker,
    retry,
    clock,
    task,
    claimAll,
  }) => {
    await broker.enqueue(Array.from({ length: 250 }, () => task()))
    const tasks = await claimAll()
    const expiresAt = clock.now() + 1000
    await broker.settle(tasks.map((one) => end(one, { expiresAt })))
    const [removed, retried, kept] = [tasks.slice(0, 100), tasks.slice(100, 120), tasks.slice(120)]
    await broker.remove(removed.map((one) => ({ ...one, ...ended(one, { expiresAt }) })))
    const again = retried.map((one) => ({ ...task({ id: one.id }), ...ended(one, { expiresAt }) }))
    expect(await retry(again)).toHaveLength(retried.length)
    // Their ids are used again, for records that expire later.
    await broker.enqueue(removed.slice(0, 10).map(({ id }) => task({ id })))
    await broker.settle((await claimAll()).map((one) => end(one, { expiresAt: expiresAt + 10 })))
    clock.advance(1000)
    expect((await broker.sweep(1000)).expired.toSorted()).toEqual(kept.map(({ id }) => id).toSorted())
    // Those that were given, and not removed, are given again.
    clock.advance(60_000)
    expect((await broker.sweep(1000)).expired).toHaveLength(kept.length + retried.length + 10)
  })

  test('finds all of them in slices, when each slice is removed', async ({ broker, clock, task, claimAll }) => {
    await broker.enqueue(Array.from({ length: 25 }, () => task()))
    const tasks = await claimAll()
    await broker.settle(tasks.map((one, i) => end(one, { expiresAt: clock.now() + i + 1 })))
    clock.advance(1000)
    const found: string[] = []
    // Some slices may be empty: a store may look at one part after another.
    for (let i = 0; i < 100 && found.length < 25; i++) {
      const { expired } = await broker.sweep(10)
      expect(expired.length).toBeLessThanOrEqual(10)
      found.push(...expired)
      await broker.remove(expired.map((id) => ({ id, ...ended({ kind: 'sum' }) })))
    }
    expect(found.toSorted()).toEqual(tasks.map((one) => one.id).toSorted())
    expect((await broker.sweep(10)).expired).toEqual([])
  })
}
