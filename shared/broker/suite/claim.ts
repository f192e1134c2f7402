import { expect } from 'bun:test'
import type { Claimed } from '../broker.ts'
import { call, cancellation, type Define, end, ids, LEASE_MS, request, retryAt } from './scene.ts'

const byId = (a: { id: string }, b: { id: string }) => a.id.localeCompare(b.id)

export function testClaim(test: Define): void {
  test('hands out a task to be run for the first time', async ({ broker, clock, add, live }) => {
    const { id, kind, envelope } = await add()
    const { tasks } = await broker.claim(request())
    expect(tasks).toEqual([
      {
        id,
        kind,
        envelope,
        attempt: 1,
        calls: 0,
        steps: 0,
        order: '',
        startedAt: clock.now(),
        token: expect.stringMatching(/./) as unknown as string,
      },
    ])
    expect(await live(id)).toMatchObject({ state: 'running', attempts: 0, startedAt: clock.now(), envelope })
  })

  test('hands out a task once', async ({ broker, add }) => {
    await add()
    expect((await broker.claim(request())).tasks).toHaveLength(1)
    expect((await broker.claim(request())).tasks).toEqual([])
  })

  test('takes as many as the limit while there are so many', async ({ broker, task }) => {
    await broker.enqueue(Array.from({ length: 10 }, () => task()))
    expect((await broker.claim(request({ limit: 3 }))).tasks).toHaveLength(3)
    expect((await broker.claim(request({ limit: 5 }))).tasks).toHaveLength(5)
    expect((await broker.claim(request({ limit: 5 }))).tasks).toHaveLength(2)
  })

  test('takes less only of large envelopes, and then says that there is more', async ({
    broker,
    clock,
    task,
    claimAll,
  }) => {
    const tasks = Array.from({ length: 5 }, () => {
      const id = Bun.randomUUIDv7()
      return task({ id, envelope: JSON.stringify({ task_id: id, v: 1, payload: 'x'.repeat(500_000) }) })
    })
    await broker.enqueue(tasks)
    const claim = await broker.claim(request({ limit: 5 }))
    expect(claim.tasks.length).toBeGreaterThan(0)
    if (claim.tasks.length < 5) expect(claim.nextDueAt ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(clock.now())
    const rest = await claimAll({ limit: 5 })
    expect([...claim.tasks, ...rest].map(({ id, envelope }) => ({ id, envelope })).toSorted(byId)).toEqual(
      tasks.map(({ id, envelope }) => ({ id, envelope })).toSorted(byId),
    )
  })

  test('takes nothing with a limit of 0 or without kinds', async ({ broker, add, live }) => {
    const { id } = await add()
    expect((await broker.claim(request({ limit: 0 }))).tasks).toEqual([])
    expect((await broker.claim(request({ kinds: [] }))).tasks).toEqual([])
    expect((await live(id)).state).toBe('queued')
  })

  test('takes only the kinds that it was asked for', async ({ add, claimAll }) => {
    await add({ kind: 'chat' })
    const sum = await add()
    expect(ids(await claimAll())).toEqual([sum.id])
  })

  test(
    'goes first in, first out',
    async ({ broker, task, add, claimAll }) => {
      const batch = [task(), task(), task()]
      await broker.enqueue(batch)
      const later = [await add(), await add()]
      expect(ids(await claimAll({ limit: 2 }))).toEqual(ids([...batch, ...later]))
    },
    'order',
  )

  test(
    'takes high before normal before low',
    async ({ add, claimAll }) => {
      const low = await add({ priority: 'low' })
      const normal = [await add(), await add()]
      const high = await add({ priority: 'high' })
      expect(ids(await claimAll())).toEqual(ids([high, ...normal, low]))
    },
    'order',
  )

  test(
    'goes by the order of kinds within a priority, and by priority before that',
    async ({ add, claimAll }) => {
      const sum = await add({ kind: 'sum' })
      const chat = await add({ kind: 'chat' })
      const urgent = await add({ kind: 'sum', priority: 'high' })
      expect(ids(await claimAll({ kinds: ['chat', 'sum'] }))).toEqual(ids([urgent, chat, sum]))
    },
    'order',
  )

  test('names each lease differently', async ({ clock, run, claimAll }) => {
    const first = await run()
    clock.advance(LEASE_MS)
    const [second] = await claimAll({ takeBack: true })
    expect(second?.id).toBe(first.id)
    expect(second?.token).not.toBe(first.token)
  })

  test('takes back an expired lease, which used up an attempt', async ({ clock, run, live, claimAll }) => {
    const { id } = await run()
    clock.advance(LEASE_MS)
    const [taken] = await claimAll({ takeBack: true })
    expect(taken).toMatchObject({ id, attempt: 2 })
    expect(await live(id)).toMatchObject({ state: 'running', attempts: 1, startedAt: clock.now() })
  })

  test('takes back no lease that still runs', async ({ clock, run, live, claimAll }) => {
    const { id } = await run()
    clock.advance(LEASE_MS - 1)
    expect(await claimAll({ takeBack: true })).toEqual([])
    expect(await live(id)).toMatchObject({ state: 'running', attempts: 0 })
  })

  test('takes nothing back unless it is asked to', async ({ clock, run, claimAll }) => {
    await run()
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: false })).toEqual([])
  })

  test('takes nothing back of other kinds', async ({ clock, run, live, claimAll }) => {
    const { id } = await run({ kind: 'chat' })
    clock.advance(LEASE_MS)
    expect(await claimAll({ kinds: ['sum'], takeBack: true })).toEqual([])
    expect((await live(id)).state).toBe('running')
  })

  test('takes a delayed task when it is due, without using up an attempt', async ({ clock, add, claimAll }) => {
    const { id } = await add({ dueAt: clock.now() + 1000 })
    clock.advance(999)
    expect(await claimAll({ takeBack: true })).toEqual([])
    clock.advance(1)
    expect(await claimAll({ takeBack: true })).toMatchObject([{ id, attempt: 1 }])
  })

  test('takes back as many as are due', async ({ broker, clock, task, claimAll }) => {
    const tasks = Array.from({ length: 300 }, () => task())
    await broker.enqueue(tasks)
    expect(await claimAll()).toHaveLength(300)
    clock.advance(LEASE_MS)
    const taken = await claimAll({ takeBack: true })
    expect(ids(taken).toSorted()).toEqual(ids(tasks).toSorted())
    expect(taken.every((one) => one.attempt === 2)).toBe(true)
  })

  test(
    'puts what comes back at the front of its queue',
    async ({ clock, run, add, claimAll }) => {
      const expired = await run()
      const queued = await add()
      const high = await add({ priority: 'high' })
      clock.advance(LEASE_MS)
      expect(ids(await claimAll({ takeBack: true }))).toEqual(ids([high, expired, queued]))
    },
    'order',
  )

  test(
    'runs the earliest due first when several come back together',
    async ({ clock, add, claimAll }) => {
      const third = await add({ dueAt: clock.now() + 3000 })
      const first = await add({ dueAt: clock.now() + 1000 })
      const second = await add({ dueAt: clock.now() + 2000 })
      const queued = await add()
      clock.advance(3000)
      expect(ids(await claimAll({ takeBack: true }))).toEqual(ids([first, second, third, queued]))
    },
    'order',
  )

  test('tells when the next delay is due', async ({ broker, clock, add }) => {
    await add({ dueAt: clock.now() + 9000 })
    await add({ dueAt: clock.now() + 5000 })
    await add({ dueAt: clock.now() + 1000, kind: 'chat' })
    expect(await broker.claim(request({ takeBack: true }))).toEqual({ tasks: [], nextDueAt: clock.now() + 5000 })
  })

  test('tells when the next lease ends', async ({ broker, clock, run }) => {
    await run()
    const deadline = clock.now() + LEASE_MS
    clock.advance(10)
    expect((await broker.claim(request({ takeBack: true }))).nextDueAt).toBe(deadline)
  })

  test('tells when the next sleep is over', async ({ broker, clock, run }) => {
    const sleeping = await run()
    await broker.settle([call(sleeping, { wakeAt: clock.now() + 4000 })])
    expect((await broker.claim(request({ takeBack: true }))).nextDueAt).toBe(clock.now() + 4000)
  })

  test('tells of no due time when nothing is due, or when it was not asked', async ({
    broker,
    clock,
    run,
    add,
    child,
  }) => {
    const parent = await run()
    await broker.settle([call(parent, { children: [child(parent, 0, { kind: 'chat' })] })])
    expect((await broker.claim(request({ takeBack: true }))).nextDueAt).toBeNull()
    await add({ dueAt: clock.now() + 1000 })
    expect((await broker.claim(request({ takeBack: false }))).nextDueAt).toBeNull()
  })

  test('drops a queued task that was cancelled', async ({ broker, add, claimAll }) => {
    const cancelled = await add()
    const other = await add()
    await broker.cancel([cancellation(cancelled)])
    expect(ids(await claimAll())).toEqual([other.id])
  })

  test('drops a queued task that was cancelled and removed', async ({ broker, add, claimAll }) => {
    const gone = await add()
    const other = await add()
    await broker.cancel([cancellation(gone)])
    await broker.remove([gone])
    expect(ids(await claimAll())).toEqual([other.id])
    expect(await broker.get([gone.id])).toEqual([null])
  })

  test('brings back neither ended nor retried tasks when their old lease would end', async ({
    broker,
    clock,
    add,
    live,
    claimAll,
  }) => {
    await add()
    await add()
    const [ended, retried] = (await claimAll()) as [Claimed, Claimed]
    await broker.settle([end(ended), retryAt(retried, clock.now() + 2 * LEASE_MS)])
    clock.advance(LEASE_MS)
    expect(await claimAll({ takeBack: true })).toEqual([])
    expect((await live(retried.id)).attempts).toBe(1)
  })

  test('brings back nine thousand tasks at once', async ({ broker, clock, task, claimAll }) => {
    const tasks = Array.from({ length: 9_000 }, () => task({ dueAt: clock.now() + 1 }))
    await broker.enqueue(tasks)
    clock.advance(1)
    expect(await claimAll({ limit: 9_000, takeBack: true })).toHaveLength(9_000)
  })

  test(
    'hands out a task once to two connections that claim at once',
    async ({ broker, again, task }) => {
      const other = await again()
      const tasks = Array.from({ length: 100 }, () => task())
      await broker.enqueue(tasks)
      const claims = await Promise.all(
        Array.from({ length: 40 }, (_, i) => (i % 2 ? broker : other).claim(request({ limit: 5 }))),
      )
      const taken = ids(claims.flatMap((claim) => claim.tasks))
      expect(taken.toSorted()).toEqual(ids(tasks).toSorted())
    },
    'secondConnection',
  )
}
