import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { nextTurn } from '#shared/runtime/clock.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { type ClusterNode, CONTROL, canCluster, type RedisCluster, startCluster } from '#shared/test/redis-cluster.ts'
import { randomNamespace } from '#shared/test/stores.ts'
import { startTcpProxy, type TcpProxy } from '#shared/test/tcp-proxy.ts'
import type { Broker, NewTask } from '../broker.ts'
import { testBroker } from '../suite/suite.ts'
import { kindKeys, partitionKeys, replicaKey } from './keys.ts'
import { createRedisBroker, partitionOf } from './redis.ts'
import { createTcpClient } from './tcp.ts'

/** So many that each of three primaries serves one at least. */
const PARTITIONS = 4
const task = (id: string): NewTask => ({
  ...{ id, kind: 'sum', priority: 'normal', fresh: true },
  envelope: encodeEnvelope({ task_id: id, payload: { num1: 1, num2: 2 } }),
})
const request = { kinds: ['sum'], limit: 1_000, leaseMs: 30_000, takeBack: false }
const ended = { type: 'end', state: 'succeeded', record: '{"result":"3","status_code":200}', endedAt: 0 } as const

/** So many ids of one partition. */
function idsOf(partition: number, count: number): string[] {
  const ids: string[] = []
  while (ids.length < count) {
    const id = crypto.randomUUID()
    if (partitionOf(id, PARTITIONS) === partition) ids.push(id)
  }
  return ids
}

/** They wait for a whole Cluster again and again, and take a minute where that takes long: `bun run long cluster`. */
const hasTime = process.env['CLUSTER_FAULTS'] === '1'
if (!hasTime) console.log('Skipped: the faults of a Cluster take too long here. bun run long cluster has them.')

describe.skipIf(!canCluster)('three primaries with a replica each', () => {
  let cluster: RedisCluster
  const cleanups: (() => unknown)[] = []
  beforeAll(async () => {
    cluster = await startCluster()
  }, 60_000)
  afterAll(() => cluster?.stop())
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
  })

  function open(
    options: { namespace?: string; waitReplicas?: number; resendAfterMs?: number[]; commandTimeoutMs?: number } = {},
  ) {
    const { namespace = randomNamespace(), resendAfterMs, ...own } = options
    const broker = createRedisBroker(createTcpClient({ url: cluster.url, ...own }), {
      ...{ namespace, partitions: PARTITIONS },
      ...(resendAfterMs && { resendAfterMs }),
    })
    cleanups.push(() => broker.close())
    return { broker, namespace }
  }

  /** The ids of all envelopes in the queues of sums, as often as they are there. */
  async function queued(namespace: string): Promise<string[]> {
    const ids: string[] = []
    for (let i = 0; i < PARTITIONS; i++) {
      const prefix = `${namespace}{${i}}:`
      const { redis } = await cluster.primaryOf(prefix)
      for (const key of kindKeys(prefix, 'sum').slice(0, 3)) {
        for (const text of await redis.lrange(key, 0, -1)) ids.push((JSON.parse(text) as { task_id: string }).task_id)
      }
    }
    return ids
  }

  testBroker(
    {
      name: `Redis Cluster in ${PARTITIONS} partitions`,
      open: async ({ namespace, now }) =>
        createRedisBroker(createTcpClient({ url: cluster.url }), {
          ...{ namespace: `${namespace}:`, now, partitions: PARTITIONS },
        }),
      async destroy(namespace) {
        for (const { redis } of cluster.nodes.slice(0, 3)) {
          for (const key of await redis.keys(`${namespace}:*`)) await redis.del(key)
        }
      },
      lacks: { order: 'tasks of different partitions have no common order' },
    },
    { numRuns: 40 },
  )

  test('a slot that has moved is followed within the call that finds out', async () => {
    const { broker, namespace } = open({ resendAfterMs: [] })
    const prefix = `${namespace}{3}:`
    const ids = idsOf(3, 4)
    await broker.enqueue(ids.slice(0, 2).map(task))
    const from = await cluster.primaryOf(prefix)
    const [to] = cluster.nodes.slice(0, 3).filter((node) => node !== from)
    if (!to) throw new Error('There is no other primary.')
    await cluster.moveSlot(prefix, to)
    await broker.enqueue(ids.slice(2).map(task))
    expect((await broker.claim(request)).tasks.map(({ id }) => id)).toEqual(ids)
    await cluster.moveSlot(prefix, from)
    expect((await broker.get(ids)).map((stored) => stored?.live?.state)).toEqual(Array(4).fill('running'))
  }, 30_000)

  test('while a slot moves its calls are refused and leave nothing by halves, and go on afterwards', async () => {
    const { broker, namespace } = open({ resendAfterMs: [1] })
    const prefix = `${namespace}{2}:`
    const [high = '', normal = '', low = ''] = idsOf(2, 3)
    await broker.enqueue([{ ...task(high), priority: 'high' }, task(normal), { ...task(low), priority: 'low' }])
    const from = await cluster.primaryOf(prefix)
    const [to] = cluster.nodes.slice(0, 3).filter((node) => node !== from)
    if (!to) throw new Error('There is no other primary.')
    // Each key is there: Redis lets a call begin, and breaks it off at the first command on a key that it has emptied.
    await fill(from, prefix)
    const slot = await from.redis.cluster('KEYSLOT', prefix)
    await to.redis.cluster('SETSLOT', slot, 'IMPORTING', from.id)
    await from.redis.cluster('SETSLOT', slot, 'MIGRATING', to.id)
    const error = await broker.claim(request).catch((reason: unknown) => reason)
    expect(String(error)).toMatch(/^StoreUnavailable: Redis at .* cannot claim now \(TRYAGAIN\)\.$/)
    await expect(broker.enqueue([task(idsOf(2, 1)[0] ?? '')])).rejects.toBeInstanceOf(StoreUnavailable)
    await cluster.moveSlot(prefix, to)
    expect((await broker.claim(request)).tasks.map(({ id }) => id)).toEqual([high, normal, low])
    await cluster.moveSlot(prefix, from)
  }, 30_000)

  /** Puts something into each key of a partition that has none. */
  async function fill({ redis }: ClusterNode, prefix: string): Promise<void> {
    const [, tasks = '', pending = '', expiry = '', sweep = '', reserved = ''] = partitionKeys(prefix)
    const [, , , ...sets] = kindKeys(prefix, 'sum')
    const [broken = '', counts = ''] = sets.splice(6)
    for (const hash of [tasks, pending, counts]) await redis.hset(hash, 'some', '0')
    for (const set of [expiry, reserved, ...sets]) await redis.zadd(set, '+inf', 'some')
    await redis.set(sweep, '0')
    await redis.lpush(broken, 'some')
  }

  test('a node whose host is not known keeps nobody from the others', async () => {
    const url = `redis://no-such-host.invalid:6379,${cluster.url}`
    const broker = createRedisBroker(createTcpClient({ url }), { partitions: PARTITIONS })
    cleanups.push(() => broker.close())
    await broker.ping()
  }, 30_000)

  test.skipIf(!hasTime)(
    'killed connections queue nothing twice, and nothing that was acknowledged is missing',
    async () => {
      const { broker, namespace } = open({ resendAfterMs: [20, 100, 400] })
      const acknowledged: string[] = []
      for (let round = 0; round < 60; round++) {
        const batches = Array.from({ length: 4 }, () => Array.from({ length: 5 }, () => crypto.randomUUID()))
        const enqueued = batches.map((ids) =>
          broker.enqueue(ids.map(task)).then(
            () => void acknowledged.push(...ids),
            (error: unknown) => expect(error).toBeInstanceOf(StoreUnavailable),
          ),
        )
        for (let turn = 0; turn < round % 4; turn++) await nextTurn()
        await Promise.all([...enqueued, ...cluster.nodes.slice(0, 3).map(killConnections)])
      }
      const found = await queued(namespace)
      expect(found).toHaveLength(new Set(found).size)
      expect(acknowledged.filter((id) => !found.includes(id))).toEqual([])
      expect(acknowledged.length).toBeGreaterThan(500)
    },
    60_000,
  )

  /** Ends every connection to a node but those of the test. */
  async function killConnections({ redis }: ClusterNode): Promise<void> {
    const lines = String(await redis.call('CLIENT', 'LIST', 'TYPE', 'NORMAL')).split('\n')
    for (const line of lines) {
      const [, id] = /^id=(\d+)/.exec(line) ?? []
      if (id && !line.includes(`name=${CONTROL} `)) await redis.call('CLIENT', 'KILL', 'ID', id)
    }
  }

  test.skipIf(!hasTime)(
    'what the replica does not have is not acknowledged with TASKER_WAIT_REPLICAS, however often it is sent',
    async () => {
      const waiting = { waitReplicas: 1, commandTimeoutMs: 400, resendAfterMs: [1] }
      const { broker, namespace } = open(waiting)
      const [before = '', refused = ''] = idsOf(1, 2)
      await broker.enqueue([task(before)])
      const primary = await cluster.primaryOf(`${namespace}{1}:`)
      // WAIT looks for what its connection wrote, and a call that finds all done writes nothing: something is written for
      // it.
      const [live = ''] = partitionKeys(`${namespace}{1}:`)
      expect(await primary.redis.del(replicaKey([live]))).toBe(1)
      const replica = await cluster.replicaOf(primary)
      await replica.kill('SIGSTOP')
      const { broker: other } = open({ ...waiting, namespace })
      for (const one of [broker, other]) {
        const error = await one.enqueue([{ ...task(refused), fresh: false }]).catch((reason: unknown) => reason)
        expect(String(error)).toBe('StoreUnavailable: 0 of 1 replicas have enqueue.')
      }
      expect(await primary.redis.exists(replicaKey([live]))).toBe(1)
      await replica.kill('SIGCONT')
      expect(await other.enqueue([{ ...task(refused), fresh: false }])).toEqual([{ id: refused, created: false }])
    },
    30_000,
  )

  /** Enqueues while a replica takes over, and until it has acknowledged some as the primary. */
  async function takeOver(planned: boolean): Promise<void> {
    const { broker, namespace } = open({ waitReplicas: 1, commandTimeoutMs: 1_000 })
    const prefix = `${namespace}{0}:`
    const primary = await cluster.primaryOf(prefix)
    const replica = await cluster.replicaOf(primary)
    const acknowledged: string[] = []
    let [afterwards, failedOver] = [0, false]
    async function load(): Promise<void> {
      while (afterwards < 20) {
        const ids = idsOf(0, 5)
        const done = await broker.enqueue(ids.map(task)).catch(() => null)
        if (done) acknowledged.push(...ids)
        if (done && failedOver) afterwards++
      }
    }
    const loaded = Promise.all([load(), load()])
    while (acknowledged.length < 200) await nextTurn()
    if (planned) await cluster.failOver(replica)
    else await primary.kill()
    while ((await cluster.primaryOf(prefix)) !== replica) await nextTurn()
    failedOver = true
    // The new primary acknowledges nothing before it has a replica.
    if (!planned) await primary.restart()
    await loaded
    const found = await queued(namespace)
    expect(found).toHaveLength(new Set(found).size)
    expect(acknowledged.filter((id) => !found.includes(id))).toEqual([])
    expect((await broker.claim(request)).tasks.length).toBeGreaterThan(0)
    await cluster.untilWhole()
  }

  test.skipIf(!hasTime)(
    'with TASKER_WAIT_REPLICAS a planned fail-over loses nothing that was acknowledged, and queues nothing twice',
    () => takeOver(true),
    60_000,
  )

  test.skipIf(!hasTime)(
    'with TASKER_WAIT_REPLICAS the end of a primary loses nothing that was acknowledged, and queues nothing twice',
    () => takeOver(false),
    60_000,
  )
})

describe.skipIf(!canCluster)('a call to a node of a Cluster whose answer is lost after it acted', () => {
  const partition = 3
  let cluster: RedisCluster
  let proxy: TcpProxy
  let broker: Broker

  beforeAll(async () => {
    cluster = await startCluster({ primaries: 2, replicas: 0 })
    const node = await cluster.primaryOf(`{${partition}}:`)
    proxy = await startTcpProxy(node)
    // Clients are sent to the proxy, by the other node too.
    await node.redis.config('SET', 'cluster-announce-port', proxy.port)
    for (const { redis } of cluster.nodes) {
      while (!JSON.stringify(await redis.call('CLUSTER', 'SLOTS')).includes(`${proxy.port}`)) await nextTurn()
    }
    broker = createRedisBroker(createTcpClient({ url: cluster.url }), {
      ...{ partitions: PARTITIONS, resendAfterMs: [50, 200, 400] },
    })
    // Scripts are loaded and the connections are there: what follows is one call each.
    await broker.claim(request)
    await broker.settle([{ type: 'release', id: idsOf(partition, 1)[0] ?? '', kind: 'sum', token: 'x' }])
    await broker.enqueue(idsOf(partition, 1).map(task))
    await broker.claim(request)
  }, 60_000)
  afterAll(async () => {
    await broker?.close()
    await proxy?.close()
    await cluster?.stop()
  })

  test('enqueues once, claims what the lost answer had claimed, and settles once', async () => {
    const [a = '', b = ''] = idsOf(partition, 2)
    proxy.loseNextAnswer()
    await broker.enqueue([task(a), task(b)])
    expect((await broker.stats(['sum']))[0]?.queued).toBe(2)

    // Only this partition holds anything, and it is visited in turn: each of the others gives nothing.
    proxy.loseNextAnswer()
    const { tasks } = await broker.claim(request)
    expect(tasks.map(({ id, attempt }) => [id, attempt])).toEqual([
      [a, 1],
      [b, 1],
    ])
    proxy.loseNextAnswer()
    const outcomes = tasks.map(({ id, kind, token }) => ({ ...ended, id, kind, token, expiresAt: null }))
    await broker.settle(outcomes)
    expect((await broker.stats(['sum']))[0]).toMatchObject({ queued: 0, succeeded: 2 })
  }, 30_000)
})
