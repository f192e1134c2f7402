import { expect } from 'bun:test'
import { LIVE_STATES, type State } from '#shared/task/task.ts'
import type { Claimed, Listed, Place } from '../broker.ts'
import { call, cancellation, type Define, end, ids, request } from './scene.ts'

const page = (state: State, fields: { kind?: string; after?: Place; limit?: number } = {}) => ({
  kind: 'sum',
  state,
  after: [],
  limit: 100,
  ...fields,
})

export function testList(test: Define): void {
  test('lists each task in its state, and in no other', async ({ broker, clock, task, add, child, claimAll }) => {
    await broker.enqueue([task(), task(), task(), task(), task()])
    const [running, waiting, succeeded, failed, cancelled] = (await claimAll()) as [
      Claimed,
      Claimed,
      Claimed,
      Claimed,
      Claimed,
    ]
    await broker.settle([
      call(waiting, { children: [child(waiting, 0, { kind: 'chat' })] }),
      end(succeeded),
      end(failed, { state: 'failed' }),
    ])
    await broker.cancel([cancellation(cancelled)])
    const delayed = await add({ dueAt: clock.now() + 1000 })
    const queued = await add()
    const expected = { queued, running, waiting, delayed, succeeded, failed, cancelled }
    for (const [state, one] of Object.entries(expected)) {
      expect({ state, ids: ids(await broker.list(page(state as State))) }).toEqual({ state, ids: [one.id] })
    }
    expect(ids(await broker.list(page('queued', { kind: 'chat' })))).toEqual([`${waiting.id}.0`])
  })

  test('lists nothing of a kind that has nothing', async ({ broker, add }) => {
    await add()
    for (const state of [...LIVE_STATES, 'succeeded'] as const) {
      expect(await broker.list(page(state, { kind: 'chat' }))).toEqual([])
    }
  })

  test(
    'lists queued tasks from the back, high before normal before low',
    async ({ broker, add }) => {
      const low = [await add({ priority: 'low' }), await add({ priority: 'low' })]
      const normal = [await add(), await add()]
      const high = [await add({ priority: 'high' }), await add({ priority: 'high' })]
      const expected = ids([...high.toReversed(), ...normal.toReversed(), ...low.toReversed()])
      const all = await broker.list(page('queued'))
      expect(ids(all)).toEqual(expected)
      expect(await broker.list(page('queued', { after: all[0]?.place ?? [], limit: 4 }))).toEqual(all.slice(1, 5))
    },
    'order',
  )

  test(
    'lists final tasks by the time they ended, the last first',
    async ({ broker, clock, task, claimAll }) => {
      await broker.enqueue(Array.from({ length: 6 }, () => task()))
      const tasks = await claimAll()
      for (const one of tasks) {
        clock.advance(10)
        await broker.settle([end(one, { state: 'failed', endedAt: clock.now() })])
      }
      const all = await broker.list(page('failed'))
      expect(ids(all)).toEqual(ids(tasks).toReversed())
      expect(await broker.list(page('failed', { after: all[1]?.place ?? [], limit: 3 }))).toEqual(all.slice(2, 5))
      expect(await broker.list(page('failed', { after: all[5]?.place ?? [] }))).toEqual([])
    },
    'order',
  )

  test(
    'lists delayed tasks by the time they come back, the last first',
    async ({ broker, clock, add }) => {
      const second = await add({ dueAt: clock.now() + 2000 })
      const first = await add({ dueAt: clock.now() + 1000 })
      const third = await add({ dueAt: clock.now() + 3000 })
      expect(ids(await broker.list(page('delayed')))).toEqual(ids([third, second, first]))
    },
    'order',
  )

  test(
    'lists running tasks by the end of their lease, the last first',
    async ({ broker, clock, task }) => {
      await broker.enqueue([task(), task(), task()])
      const tasks: Claimed[] = []
      for (let i = 0; i < 3; i++) {
        clock.advance(1000)
        tasks.push(...(await broker.claim(request({ limit: 1 }))).tasks)
      }
      expect(ids(await broker.list(page('running')))).toEqual(ids(tasks).toReversed())
    },
    'order',
  )

  test('shows every task once, from page to page, those that ended together too', async ({
    broker,
    clock,
    task,
    claimAll,
  }) => {
    await broker.enqueue(Array.from({ length: 330 }, () => task()))
    const tasks = await claimAll()
    for (const [from, to] of [
      [0, 120],
      [120, 121],
      [121, 130],
      [130, 330],
    ] as const) {
      const endedAt = clock.now() + from
      await broker.settle(tasks.slice(from, to).map((one) => end(one, { endedAt })))
    }
    for (const limit of [1, 7, 100]) {
      const shown: string[] = []
      for (let after: Place | undefined = []; after; ) {
        const listed: Listed[] = await broker.list(page('succeeded', { after, limit }))
        shown.push(...ids(listed))
        after = listed.at(-1)?.place
      }
      expect(shown.toSorted()).toEqual(ids(tasks).toSorted())
    }
  })

  test('gives nothing for a limit of 0', async ({ broker, add, run }) => {
    await broker.settle([end(await run())])
    await add()
    expect(await broker.list(page('queued', { limit: 0 }))).toEqual([])
    expect(await broker.list(page('succeeded', { limit: 0 }))).toEqual([])
  })
}
