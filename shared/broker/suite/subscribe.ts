import { expect } from 'bun:test'
import type { Broker, Claimed, TaskEvent } from '../broker.ts'
import { call, type Define, end, LEASE_MS, release, retryAt } from './scene.ts'

/** Resolves when kinds are woken; fails by the test's time-out when they are not. */
async function listen(broker: Broker, kinds: readonly string[]) {
  const wakes: { kind: string; at: number | null }[] = []
  let check = () => {}
  const { close } = await broker.subscribe(kinds, (kind, at) => {
    wakes.push({ kind, at })
    check()
  })
  return {
    wakes,
    close,
    until: (wanted: { kind: string; at: number | null }) =>
      new Promise<void>((resolve) => {
        check = () => {
          if (wakes.some(({ kind, at }) => kind === wanted.kind && at === wanted.at)) resolve()
        }
        check()
      }),
  }
}

async function observe(broker: Broker) {
  const events: TaskEvent[] = []
  let check = () => {}
  const { close } = await broker.watch((event) => {
    events.push(event)
    check()
  })
  return {
    events,
    close,
    until: (wanted: (event: TaskEvent) => boolean) =>
      new Promise<void>((resolve) => {
        check = () => {
          if (events.some(wanted)) resolve()
        }
        check()
      }),
  }
}

const ended = (id: string) => (event: TaskEvent) => event.type === 'end' && event.tasks.some((task) => task.id === id)

export function testSubscribe(test: Define): void {
  test('wakes when a task is queued', async ({ broker, add }) => {
    const heard = await listen(broker, ['sum', 'chat'])
    await add({ kind: 'chat' })
    await heard.until({ kind: 'chat', at: null })
    await add({ kind: 'sum' })
    await heard.until({ kind: 'sum', at: null })
  })

  test('tells when a delayed task will be due', async ({ broker, clock, add }) => {
    const heard = await listen(broker, ['sum'])
    const dueAt = clock.now() + 5000
    await add({ dueAt })
    await heard.until({ kind: 'sum', at: dueAt })
  })

  test('tells when a task will be due that is retried or sleeps', async ({ broker, clock, add, claimAll }) => {
    await add()
    await add()
    const [retried, sleeping] = (await claimAll()) as [Claimed, Claimed]
    const heard = await listen(broker, ['sum'])
    await broker.settle([retryAt(retried, clock.now() + 1000)])
    await heard.until({ kind: 'sum', at: clock.now() + 1000 })
    await broker.settle([call(sleeping, { wakeAt: clock.now() + 2000 })])
    await heard.until({ kind: 'sum', at: clock.now() + 2000 })
  })

  test('wakes for children, and for the parent when they have ended', async ({ broker, run, child, claimAll }) => {
    const parent = await run({ kind: 'sequence' })
    const sums = await listen(broker, ['sum'])
    await broker.settle([call(parent, { children: [child(parent, 0)] })])
    await sums.until({ kind: 'sum', at: null })
    const parents = await listen(broker, ['sequence'])
    const of = { parent: { id: parent.id, kind: 'sequence' } }
    await broker.settle((await claimAll()).map((one) => end(one, of)))
    await parents.until({ kind: 'sequence', at: null })
  })

  test('wakes when a task is released or retried by hand', async ({ broker, retry, run, task }) => {
    const released = await run()
    const first = await listen(broker, ['sum'])
    await broker.settle([release(released)])
    await first.until({ kind: 'sum', at: null })

    const failed = await run({ kind: 'chat' })
    await broker.settle([end(failed, { state: 'failed' })])
    const second = await listen(broker, ['chat'])
    await retry([task({ id: failed.id, kind: 'chat' })])
    await second.until({ kind: 'chat', at: null })
  })

  test('wakes nobody after it was closed', async ({ broker, add }) => {
    const open = await listen(broker, ['sum', 'chat'])
    const closed = await listen(broker, ['sum', 'chat'])
    await closed.close()
    await closed.close()
    const before = [...closed.wakes]
    await add({ kind: 'sum' })
    await add({ kind: 'chat' })
    await open.until({ kind: 'chat', at: null })
    expect(closed.wakes).toEqual(before)
    await open.close()
  })

  test(
    'wakes when another connection queues a task',
    async ({ broker, again, task }) => {
      const heard = await listen(broker, ['sum'])
      const other = await again()
      await other.enqueue([task()])
      await heard.until({ kind: 'sum', at: null })
      await heard.close()
    },
    'secondConnection',
  )

  test('tells those who watch that a root has ended', async ({ broker, run, record }) => {
    const watched = await observe(broker)
    for (const state of ['succeeded', 'failed'] as const) {
      const task = await run()
      await broker.settle([end(task, { state })])
      await watched.until(ended(task.id))
      expect(await record(task.id)).toBeString()
    }
  })

  test('tells the record with the end of a single root, and never a wrong one', async ({ broker, task, claimAll }) => {
    const watched = await observe(broker)
    const told = () => watched.events.flatMap((event) => (event.type === 'end' ? event.tasks : []))
    for (const batch of [1, 4, 5, 30]) {
      await broker.enqueue(Array.from({ length: batch }, () => task()))
      const tasks = await claimAll()
      const records = tasks.map(({ id }, i) => JSON.stringify({ id, text: '"ü\n'.repeat(i === 3 ? 2_000 : 1) }))
      await broker.settle(tasks.map((one, i) => end(one, { record: records[i] ?? '' })))
      for (const { id } of tasks) await watched.until(ended(id))
      for (const [i, { id }] of tasks.entries()) {
        const record = told().find((one) => one.id === id)?.record ?? null
        if (batch === 1 || record !== null) expect(record).toBe(records[i] ?? '')
      }
    }
  })

  test('tells those who watch that a root was cancelled', async ({ broker, add }) => {
    const watched = await observe(broker)
    const { id, kind } = await add()
    await broker.cancel([{ id, kind, record: 'cancelled', endedAt: 0, expiresAt: null }])
    await watched.until(ended(id))
  })

  test('tells of no end while a task goes on', async ({ broker, clock, add, claimAll }) => {
    await add()
    await add()
    const [first, second] = (await claimAll()) as [Claimed, Claimed]
    const watched = await observe(broker)
    await broker.settle([release(first)])
    await broker.extend([second], LEASE_MS)
    await broker.settle([retryAt(second, clock.now() + 1000)])
    const [again] = (await claimAll()) as [Claimed]
    await broker.settle([end(again)])
    await watched.until(ended(first.id))
    expect(watched.events.some(ended(second.id))).toBe(false)
  })

  test('passes on chunks in their order', async ({ broker, run }) => {
    const { id } = await run()
    const watched = await observe(broker)
    await broker.emit([
      { id, chunk: 'Hello,' },
      { id, chunk: ' "world" \n' },
    ])
    await broker.emit([
      { id, chunk: '' },
      { id, chunk: 'ü😀' },
    ])
    await watched.until((event) => event.type === 'chunk' && event.chunk === 'ü😀')
    expect(watched.events).toEqual(['Hello,', ' "world" \n', '', 'ü😀'].map((chunk) => ({ type: 'chunk', id, chunk })))
  })

  test('passes on nothing after the watch was closed', async ({ broker }) => {
    const open = await observe(broker)
    const closed = await observe(broker)
    await closed.close()
    await closed.close()
    await broker.emit([{ id: 'any', chunk: 'text' }])
    await open.until((event) => event.type === 'chunk')
    expect(closed.events).toEqual([])
    await open.close()
  })

  test(
    'passes on ends and chunks of another connection',
    async ({ broker, again, run }) => {
      const task = await run()
      const watched = await observe(broker)
      const other = await again()
      await other.ping()
      await other.emit([{ id: task.id, chunk: 'text' }])
      await watched.until((event) => event.type === 'chunk' && event.id === task.id)
      await other.settle([end(task)])
      await watched.until(ended(task.id))
    },
    'remoteEvents',
  )
}
