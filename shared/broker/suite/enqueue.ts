import { expect } from 'bun:test'
import { cancellation, type Define, end, ids, recordOf } from './scene.ts'

export function testEnqueue(test: Define): void {
  test('stores a task as queued, with its envelope and nothing used up', async ({ broker, task }) => {
    const added = task()
    expect(await broker.enqueue([added])).toEqual([{ id: added.id, created: true }])
    expect(await broker.get([added.id])).toEqual([
      {
        id: added.id,
        record: null,
        live: {
          state: 'queued',
          kind: 'sum',
          attempts: 0,
          calls: 0,
          steps: 0,
          order: '',
          pending: 0,
          startedAt: null,
          progress: null,
          envelope: added.envelope,
        },
      },
    ])
  })

  test('answers in the order of the tasks', async ({ broker, add, task }) => {
    const known = await add()
    const tasks = [task(), known, task({ kind: 'chat' }), task({ priority: 'high' })]
    expect(await broker.enqueue(tasks)).toEqual(tasks.map(({ id }) => ({ id, created: id !== known.id })))
  })

  test('takes an empty batch', async ({ broker }) => {
    expect(await broker.enqueue([])).toEqual([])
  })

  test('takes a batch of a thousand', async ({ broker, task, claimAll }) => {
    const tasks = Array.from({ length: 1000 }, () => task())
    await broker.enqueue(tasks)
    expect(new Set(ids(await claimAll()))).toEqual(new Set(ids(tasks)))
  })

  test('stores tasks whose ids are said to be fresh', async ({ broker, task, live }) => {
    const added = task({ fresh: true })
    expect(await broker.enqueue([added])).toEqual([{ id: added.id, created: true }])
    expect((await live(added.id)).envelope).toBe(added.envelope)
  })

  test('leaves a queued task as it is when its id comes again', async ({ broker, add, live, claimAll }) => {
    const first = await add()
    const again = { ...first, envelope: '{"task_id":"other"}' }
    expect(await broker.enqueue([again])).toEqual([{ id: first.id, created: false }])
    expect((await live(first.id)).envelope).toBe(first.envelope)
    expect(ids(await claimAll())).toEqual([first.id])
  })

  test('leaves a running task as it is when its id comes again', async ({ broker, task, run, live, claimAll }) => {
    const running = await run()
    expect(await broker.enqueue([task({ id: running.id })])).toEqual([{ id: running.id, created: false }])
    expect((await live(running.id)).state).toBe('running')
    expect(await claimAll()).toEqual([])
  })

  test('leaves a delayed task as it is when its id comes again', async ({ broker, clock, add, live, claimAll }) => {
    const delayed = await add({ dueAt: clock.now() + 1000 })
    expect(await broker.enqueue([{ ...delayed, dueAt: null }])).toEqual([{ id: delayed.id, created: false }])
    expect((await live(delayed.id)).state).toBe('delayed')
    expect(await claimAll()).toEqual([])
  })

  test('leaves a final task as it is when its id comes again', async ({ broker, task, run, record, claimAll }) => {
    const ended = await run()
    await broker.settle([end(ended)])
    expect(await broker.enqueue([task({ id: ended.id })])).toEqual([{ id: ended.id, created: false }])
    expect(await record(ended.id)).toBe(recordOf(ended.id))
    expect(await claimAll()).toEqual([])
  })

  test('leaves a cancelled task as it is when its id comes again', async ({ broker, add, record, claimAll }) => {
    const cancelled = await add()
    await broker.cancel([cancellation(cancelled)])
    expect(await broker.enqueue([cancelled])).toEqual([{ id: cancelled.id, created: false }])
    expect(await record(cancelled.id)).toBe(recordOf(cancelled.id, 'cancelled'))
    expect(await claimAll()).toEqual([])
  })

  test('makes one task of an id that is twice in one call', async ({ broker, task, claimAll }) => {
    const twice = task()
    const answers = await broker.enqueue([twice, twice])
    expect(answers.map((answer) => answer.created)).toEqual([true, false])
    expect(ids(await claimAll())).toEqual([twice.id])
  })

  test('delays a task that is due in the future', async ({ clock, add, live, claimAll }) => {
    const delayed = await add({ dueAt: clock.now() + 1000 })
    expect((await live(delayed.id)).state).toBe('delayed')
    expect(await claimAll({ takeBack: true })).toEqual([])
  })

  test('queues a task at once that is due already', async ({ clock, add, live, claimAll }) => {
    const due = await add({ dueAt: clock.now() - 1 })
    expect((await live(due.id)).state).toBe('queued')
    expect(ids(await claimAll())).toEqual([due.id])
  })

  test('keeps every character of an envelope', async ({ broker, task, live, claimAll }) => {
    const id = Bun.randomUUIDv7()
    const payload = `"quotes" \\ \n\t \u0001 ${'ü€😀'.repeat(10)} [1,null] \u2028`
    const envelope = JSON.stringify({ task_id: id, v: 1, payload })
    await broker.enqueue([task({ id, envelope })])
    expect((await live(id)).envelope).toBe(envelope)
    expect((await claimAll())[0]?.envelope).toBe(envelope)
  })

  test('takes an envelope of one MiB', async ({ broker, task, claimAll }) => {
    const id = Bun.randomUUIDv7()
    const envelope = JSON.stringify({ task_id: id, v: 1, payload: 'x'.repeat(1024 * 1024) })
    await broker.enqueue([task({ id, envelope })])
    expect((await claimAll())[0]?.envelope).toBe(envelope)
  })

  test(
    'makes one task of an id that comes over two connections at once',
    async ({ broker, again, task, claimAll }) => {
      const other = await again()
      const tasks = Array.from({ length: 20 }, () => task())
      const answers = await Promise.all(tasks.flatMap((one) => [broker.enqueue([one]), other.enqueue([one])]))
      expect(answers.flat().filter((answer) => answer.created)).toHaveLength(20)
      expect(ids(await claimAll()).toSorted()).toEqual(ids(tasks).toSorted())
    },
    'secondConnection',
  )
}
