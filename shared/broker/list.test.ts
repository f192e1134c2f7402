import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import { contracts } from '#services/workers/contracts.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { randomNamespace, redisTestUrl } from '#shared/test/stores.ts'
import type { Broker } from './broker.ts'
import { listTasks, type Page } from './list.ts'
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
