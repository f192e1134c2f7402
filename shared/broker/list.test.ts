import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import { contracts } from '#services/workers/contracts.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { randomNamespace, redisTestUrl, stores } from '#shared/test/stores.ts'
import type { Broker } from './broker.ts'
import { listChildren, listTasks, type Page } from './list.ts'
import { kindKeys } from './redis/keys.ts'
import { createRedisBroker, partitionOf } from './redis/redis.ts'
import { createTcpClient } from './redis/tcp.ts'

for (const partitions of [1, 3]) {
  describe(`a list of a queue that foreign producers push to, of ${partitions} partitions`, () => {
    let namespace: string
    let broker: Broker
    let foreign: Redis

    beforeEach(() => {
      namespace = randomNamespace()
      broker = createRedisBroker(createTcpClient({ url: redisTestUrl() }), { namespace, partitions })
      foreign = new Redis(redisTestUrl())
    })
    afterEach(async () => {
      foreign.disconnect()
      await broker.close()
    })

    const push = (partition: number, ...texts: string[]) => {
      const [, queue = ''] = kindKeys(namespace + (partitions > 1 ? `{${partition}}:` : ''), 'sum')
      return foreign.lpush(queue, ...texts)
    }
    async function add(from: number, to: number): Promise<string[]> {
      const tasks = Array.from({ length: to - from }, (_, i) => {
        const id = `t${from + i}`
        const envelope = encodeEnvelope({ task_id: id, kind: 'sum', payload: {}, created_at: from + i })
        return { id, kind: 'sum', priority: 'normal' as const, envelope }
      })
      await broker.enqueue(tasks)
      return tasks.map(({ id }) => id)
    }
    async function listed(limit: number): Promise<string[]> {
      const ids: string[] = []
      let cursor: string | null = null
      do {
        const page: Page = await listTasks(broker, contracts, { kind: 'sum', limit, cursor })
        ids.push(...page.tasks.map((task) => task.task_id))
        cursor = page.cursor
      } while (cursor !== null)
      return ids.toSorted()
    }

    test('goes on behind envelopes without an id', async () => {
      const broken = (count: number) => Array.from({ length: count }, () => 'broken')
      const ids = await add(0, 20)
      for (let i = 0; i < partitions; i++) await push(i, ...broken(250))
      ids.push(...(await add(20, 40)))
      for (let i = 0; i < partitions; i++) await push(i, 'broken')
      for (const limit of [1, 7, 100]) expect(await listed(limit)).toEqual(ids.toSorted())
      const all = await broker.list({ kind: 'sum', state: 'queued', after: [], limit: 40 })
      expect(all.map(({ id }) => id).toSorted()).toEqual(ids.toSorted())
    })

    test('goes on behind an id that was pushed several times', async () => {
      const ids = await add(0, 40)
      const known = ids[0] ?? ''
      const envelope = JSON.stringify({ task_id: known, payload: {} })
      await push(partitionOf(known, partitions), ...Array.from({ length: 30 }, () => envelope))
      for (const limit of [1, 7, 100]) expect([...new Set(await listed(limit))]).toEqual(ids.toSorted())
    })
  })
}

describe.each(stores)('a page of large tasks, on $name,', (store) => {
  const LARGE = 150_000

  test.each(['all of them', 'those of one kind', 'the children of one'])(
    'ends after a megabyte, and the pages show each once: %s',
    async (which) => {
      const broker = store.open({ now: () => 1_000 })
      const payload = 'x'.repeat(LARGE)
      const parent = { id: 'p', kind: 'sequence' }
      // Ids that do not tell when they were made, so that the list must look at what is stored.
      const tasks = Array.from({ length: 24 }, (_, i) => {
        const [id, kind] = [`p.${i}`, i % 2 ? 'sum' : 'chat']
        const envelope = encodeEnvelope({ task_id: id, kind, payload, created_at: i, parent })
        return { id, kind, priority: 'normal' as const, parent, envelope }
      })
      const envelope = encodeEnvelope({ task_id: 'p', kind: 'sequence', payload: { n: 1 }, created_at: 0 })
      await broker.enqueue([{ ...parent, priority: 'normal', envelope }])
      const { tasks: claimed } = await broker.claim({ kinds: ['sequence'], limit: 1, leaseMs: 1_000, takeBack: false })
      await broker.settle(
        claimed.map(({ id, kind, token }) => ({
          ...{ type: 'call', id, kind, token, children: tasks, records: [], calls: tasks.length, steps: 0 },
          ...{ order: '', park: true, wakeAt: null, awaits: null },
        })),
      )
      // Half of those of a kind have ended.
      for (let i = 0; i < 6; i++) {
        const one = await broker.claim({ kinds: ['chat'], limit: 1, leaseMs: 1_000, takeBack: false })
        await broker.settle(
          one.tasks.map(({ id, kind, token }) => ({
            ...{ type: 'end', id, kind, token, state: 'succeeded', parent, endedAt: i, expiresAt: null },
            record: JSON.stringify({ result: payload, status_code: 200, kind, created_at: Number(id.slice(2)) }),
          })),
        )
      }
      const shown: string[] = []
      let cursor: string | null = null
      do {
        const query = { limit: 200, cursor }
        const page: Page =
          which === 'the children of one'
            ? await listChildren(broker, contracts, { ...query, parent: 'p' })
            : await listTasks(broker, contracts, { ...query, kind: which === 'all of them' ? undefined : 'chat' })
        expect(JSON.stringify(page).length).toBeLessThan(1_001_000)
        shown.push(...page.tasks.map((task) => task.task_id))
        cursor = page.cursor
        expect(page.tasks.length > 0 || cursor === null).toBe(true)
      } while (cursor !== null)
      const expected = tasks.filter(({ kind }) => kind === 'chat' || which !== 'those of one kind').map(({ id }) => id)
      if (which === 'all of them') expected.push('p')
      expect(shown.toSorted()).toEqual(expected.toSorted())
      await broker.close()
    },
  )
})
