import { expect } from 'bun:test'
import { encodeEnvelope } from '#shared/task/task.ts'
import type { Claimed, NewTask, Place } from '../broker.ts'
import { cancellation, type Define, end, ids, LEASE_MS, release, request, type Scene } from './scene.ts'

/** A call stops after about so many bytes: more of them hold up others, and fill the memory. */
const MOST = 1_000_000
const LARGE = 150_000
/** So many that one of four partitions has more than a call takes, however they fall. */
const COUNT = 32

/** As many tasks with large payloads, one after the other: a call that took them all would move almost five megabytes. */
async function addLarge({ task, broker }: Scene, fields: Partial<NewTask> = {}): Promise<NewTask[]> {
  const tasks = Array.from({ length: COUNT }, (_, i) => {
    const { id } = task()
    const payload = 'x'.repeat(LARGE)
    return task({ id, envelope: encodeEnvelope({ task_id: id, payload, created_at: i }), ...fields })
  })
  for (const one of tasks) await broker.enqueue([one])
  return tasks
}

const bytesIn = (tasks: readonly Pick<Claimed, 'envelope'>[]) =>
  tasks.reduce((sum, { envelope }) => sum + envelope.length, 0)

export function testBytes(test: Define): void {
  test('a claim takes about a megabyte, and says that there is more', async (scene) => {
    const { broker, clock } = scene
    const tasks = await addLarge(scene)
    const claimed: Claimed[] = []
    while (claimed.length < COUNT) {
      const claim = await broker.claim(request())
      expect(claim.tasks.length).toBeGreaterThan(0)
      expect(bytesIn(claim.tasks)).toBeLessThan(3 * MOST)
      claimed.push(...claim.tasks)
      if (claimed.length < COUNT) expect(claim.nextDueAt).toBe(clock.now())
    }
    expect(ids(claimed).toSorted()).toEqual(ids(tasks).toSorted())
  })

  test('what falls due together is put back about a megabyte at a time, and nothing is left', async (scene) => {
    const { broker, clock } = scene
    const delayed = await addLarge(scene, { dueAt: clock.now() + 1000 })
    clock.advance(1000)
    const claimed: Claimed[] = []
    const first = await broker.claim(request({ limit: 1, takeBack: true }))
    claimed.push(...first.tasks)
    expect(first.nextDueAt).toBe(clock.now())
    // It moved a part of them: each of them is written anew for that.
    const [stats] = await broker.stats(['sum'])
    expect(stats?.delayed).toBeGreaterThan(0)
    for (let i = 0; i < 10 * COUNT && claimed.length < COUNT; i++) {
      claimed.push(...(await broker.claim(request({ takeBack: true }))).tasks)
    }
    expect(ids(claimed).toSorted()).toEqual(ids(delayed).toSorted())
    clock.advance(LEASE_MS)
    const again: Claimed[] = []
    for (let i = 0; i < 10 * COUNT && again.length < COUNT; i++) {
      again.push(...(await broker.claim(request({ takeBack: true }))).tasks)
    }
    expect(again.map(({ attempt }) => attempt)).toEqual(Array(COUNT).fill(2))
  })

  test('the leases of large tasks are all extended, and those that are lost are told among them', async (scene) => {
    const { broker, clock, claimAll } = scene
    await addLarge(scene)
    const claimed = await claimAll()
    const [cancelled, released] = [claimed[3] as Claimed, claimed[COUNT - 2] as Claimed]
    await broker.cancel([cancellation(cancelled)])
    await broker.settle([release(released)])
    clock.advance(LEASE_MS - 1)
    expect(await broker.extend(claimed, LEASE_MS)).toEqual({ lost: [released.id], cancelled: [cancelled.id] })
    clock.advance(1)
    const back = await claimAll({ takeBack: true })
    expect(ids(back)).toEqual([released.id])
  })

  test('a read of some ends after about a megabyte, and has the first at least', async (scene) => {
    const { broker, run } = scene
    const tasks = await addLarge(scene)
    const huge = await run({ kind: 'chat' })
    await broker.settle([end(huge, { record: JSON.stringify({ result: 'x'.repeat(2 * MOST), status_code: 200 }) })])
    const all = ['unknown', huge.id, ...ids(tasks), 'unknown']
    const found: (string | undefined)[] = []
    while (found.length < all.length) {
      const some = await broker.get(all.slice(found.length), { some: true })
      expect(some.length).toBeGreaterThan(0)
      const sizes = some.map((one) => (one?.record ?? one?.live?.envelope ?? '').length)
      // In several partitions each stops by itself.
      expect(sizes.reduce((a, b) => a + b)).toBeLessThan(MOST * 3 + Math.max(...sizes))
      found.push(...some.map((one) => one?.id))
    }
    expect(found).toEqual([undefined, huge.id, ...ids(tasks), undefined])
    expect((await broker.get(all)).map((one) => one?.id)).toEqual(found)
  })

  test('a read of what has ended gives nothing of what lives', async (scene) => {
    const { broker, run, add } = scene
    const ended = await run()
    await broker.settle([end(ended)])
    const live = await add()
    const found = await broker.get([live.id, ended.id, 'unknown'], { endedOnly: true })
    expect(found.map((one) => one?.id ?? null)).toEqual([null, ended.id, null])
  })

  test('a list of large queued tasks goes on where it was cut', async (scene) => {
    const { broker } = scene
    const tasks = await addLarge(scene)
    const listed: string[] = []
    let after: Place | null = []
    while (after) {
      const page = await broker.list({ kind: 'sum', state: 'queued', after, limit: COUNT + 1 })
      listed.push(...ids(page))
      const last = page.at(-1)
      after = last?.isCut ? last.place : null
    }
    expect(listed.toSorted()).toEqual(ids(tasks).toSorted())
  })
}
