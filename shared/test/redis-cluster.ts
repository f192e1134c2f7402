import { Command, Redis } from 'ioredis'
import { freePort } from './process.ts'
import { type RedisServer, startRedis } from './redis-server.ts'

/** A node, and a connection of the test's own to it, which asks that node alone. */
export interface ClusterNode extends RedisServer {
  readonly id: string
  readonly redis: Redis
  /** Starts the killed node again, on its port and with its part in the Cluster. */
  restart(): Promise<void>
}

export interface RedisCluster {
  /** All nodes as a client is given them, comma-separated. */
  readonly url: string
  /** As they were started: the primaries, then their replicas in the same order. */
  readonly nodes: readonly ClusterNode[]
  /** Whoever serves the slot of a key now. */
  primaryOf(key: string): Promise<ClusterNode>
  /** A replica of a node. */
  replicaOf(primary: ClusterNode): Promise<ClusterNode>
  /** A replica and its primary change their roles, as for maintenance. */
  failOver(to: ClusterNode): Promise<void>
  /** Resolves when all slots are served, and each primary that had one at the start has a replica that follows. */
  untilWhole(): Promise<void>
  /**
   * Moves the slot of a key with all that is in it; `meanwhile` is waited for when calls are refused already. Clients
   * learn of it when they come to the old node.
   */
  moveSlot(key: string, to: ClusterNode, meanwhile?: () => Promise<void>): Promise<void>
  stop(): Promise<void>
}

/** Whether this machine can run one: nodes in containers could not reach each other. */
export const canCluster = Bun.which('redis-server') !== null
if (!canCluster) console.log('Skipped: a Redis Cluster needs redis-server on the PATH.')

const SLOTS = 16_384
/** Redis tries one that was asked for so long. */
const FAIL_OVER_MS = 5_100
/** Short enough for a test, and longer than a node is ever kept waiting on a machine that is busy. */
export const NODE_TIMEOUT_MS = 2_000

/** Starts real nodes and makes them a Cluster. They end with this process, however that ends. */
export async function startCluster(
  options: { primaries?: number; replicas?: number; args?: readonly string[] } = {},
): Promise<RedisCluster> {
  const { primaries = 3, replicas = 1, args = [] } = options
  const count = primaries * (1 + replicas)
  const nodes = await Promise.all(Array.from({ length: count }, () => startNode(args)))
  const cluster = clusterOf(nodes, replicas > 0)
  try {
    const bus = (node: ClusterNode) => Number(busOf.get(node))
    await Promise.all(nodes.map(({ redis }, i) => redis.call('CLUSTER', 'SET-CONFIG-EPOCH', i + 1)))
    const first = nodes[0] as ClusterNode
    for (const node of nodes.slice(1)) await first.redis.call('CLUSTER', 'MEET', '127.0.0.1', node.port, bus(node))
    for (let i = 0; i < primaries; i++) {
      const from = Math.ceil((i * SLOTS) / primaries)
      const to = Math.ceil(((i + 1) * SLOTS) / primaries) - 1
      await nodes[i]?.redis.call('CLUSTER', 'ADDSLOTSRANGE', from, to)
    }
    for (const node of nodes) while ((await field(node, 'cluster_known_nodes')) !== String(count)) await breath()
    for (let i = primaries; i < count; i++) {
      const primary = nodes[i % primaries]
      while (!(await accepted(nodes[i]?.redis.call('CLUSTER', 'REPLICATE', primary?.id ?? '')))) await breath()
    }
    await cluster.untilWhole()
    return cluster
  } catch (error) {
    await cluster.stop()
    throw error
  }
}

const busOf = new WeakMap<ClusterNode, number>()

async function startNode(args: readonly string[]): Promise<ClusterNode> {
  const bus = await freePort()
  const settings = [
    ...['--cluster-enabled', 'yes', '--cluster-port', String(bus), '--cluster-announce-ip', '127.0.0.1'],
    ...['--cluster-node-timeout', String(NODE_TIMEOUT_MS), '--cluster-replica-validity-factor', '0'],
    ...['--repl-diskless-sync-delay', '0', '--repl-ping-replica-period', '1', ...args],
  ]
  const start = (port?: number, dir?: string) =>
    startRedis({ args: settings, ...(port && { port }), ...(dir && { dir }) })
  let server = await start()
  const redis = connectTo(server.port)
  const id = String(await redis.call('CLUSTER', 'MYID'))
  const [, dir = ''] = (await redis.config('GET', 'dir')) as string[]
  const node: ClusterNode = {
    ...{ id, redis, url: server.url, port: server.port },
    get pid() {
      return server.pid
    },
    kill: (signal) => server.kill(signal),
    async restart() {
      server = await start(node.port, dir)
      while (redis.status !== 'ready') await breath()
    },
    async stop() {
      redis.disconnect()
      await server.stop()
    },
  }
  busOf.set(node, bus)
  return node
}

function connectTo(port: number): Redis {
  const redis = new Redis({
    ...{ port, host: '127.0.0.1', connectionName: CONTROL, protocol: 2 },
    ...{ retryStrategy: () => 20, maxRetriesPerRequest: 0, autoResendUnfulfilledCommands: false },
  })
  redis.on('error', () => undefined)
  return redis
}
/** What the connections of tests are called, among those that the node lists. */
export const CONTROL = 'control'

function clusterOf(nodes: readonly ClusterNode[], replicated: boolean): RedisCluster {
  /** Who serves what, as the node says. */
  const shards = async (node: ClusterNode) => (await node.redis.call('CLUSTER', 'SLOTS')) as SlotRange[]
  const byId = (id: string) => nodes.find((node) => node.id === id)
  const served = (ranges: readonly SlotRange[]) => ranges.reduce((sum, [from, to]) => sum + to - from + 1, 0)

  const cluster: RedisCluster = {
    nodes,
    url: nodes.map(({ url }) => url).join(','),
    async primaryOf(key) {
      const slot = new Command('exists', [key]).getSlot() ?? 0
      for (;;) {
        // One that was replaced says for a moment what it was: then two claim the slot.
        const claiming = []
        for (const node of nodes) {
          const ranges = node.redis.status === 'ready' ? await shards(node).catch(() => []) : []
          if (ranges.some(([from, to, [, , id]]) => id === node.id && from <= slot && slot <= to)) claiming.push(node)
        }
        const [primary, ...others] = claiming
        if (primary && others.length === 0) return primary
        await breath()
      }
    },
    async replicaOf(primary) {
      for (;;) {
        const ranges = await shards(primary).catch(() => [])
        const ids = ranges.filter(([, , [, , id]]) => id === primary.id).flatMap(([, , , ...copies]) => copies)
        const replica = ids.map(([, , id]) => byId(id)).find((node) => node?.redis.status === 'ready')
        if (replica) return replica
        await breath()
      }
    },
    async failOver(to) {
      // The others vote for one of the same shard only so often: until then it comes to nothing, and is asked for
      // again.
      for (let askedAt = Number.NEGATIVE_INFINITY; (await roleOf(to)) !== 'master'; await breath()) {
        if (performance.now() - askedAt < FAIL_OVER_MS) continue
        await accepted(to.redis.call('CLUSTER', 'FAILOVER'))
        askedAt = performance.now()
      }
    },
    async untilWhole() {
      for (;;) {
        const views = await Promise.all(nodes.map(viewOf)).catch(() => [])
        if (views.length > 0 && views[0] !== null && new Set(views).size === 1) return
        await breath()
      }
    },
    async moveSlot(key, to, meanwhile) {
      const from = await cluster.primaryOf(key)
      const slot = new Command('exists', [key]).getSlot() ?? 0
      if (from === to) return
      await to.redis.cluster('SETSLOT', slot, 'IMPORTING', from.id)
      await from.redis.cluster('SETSLOT', slot, 'MIGRATING', to.id)
      await meanwhile?.()
      for (;;) {
        const keys = await from.redis.cluster('GETKEYSINSLOT', slot, 100)
        if (keys.length === 0) break
        // A target that has just been cut off refuses for a moment; what it has taken all the same is replaced.
        if (
          !(await accepted(from.redis.call('MIGRATE', '127.0.0.1', to.port, '', 0, 5_000, 'REPLACE', 'KEYS', ...keys)))
        )
          await breath()
      }
      // The new owner first: a slot without one would be lost if this ended in between.
      await to.redis.cluster('SETSLOT', slot, 'NODE', to.id)
      await from.redis.cluster('SETSLOT', slot, 'NODE', to.id)
    },
    async stop() {
      await Promise.all(nodes.map((node) => node.stop()))
    },
  }

  /** Who serves what as a node sees it, as one text; null when it does not see a whole Cluster. */
  async function viewOf(node: ClusterNode): Promise<string | null> {
    if ((await field(node, 'cluster_state')) !== 'ok') return null
    const ranges = await shards(node)
    if (served(ranges) !== SLOTS) return null
    const replication = replicated ? await node.redis.info('replication') : ''
    if (replicated && !/master_link_status:up|connected_slaves:[1-9]/.test(replication)) return null
    const seen = ranges.map(([from, to, [, , primary], ...copies]) => [from, to, primary, copies.map(([, , id]) => id)])
    return JSON.stringify(seen.toSorted(([a], [b]) => Number(a) - Number(b)))
  }
  return cluster
}

type SlotRange = [from: number, to: number, primary: SlotNode, ...replicas: SlotNode[]]
type SlotNode = [host: string, port: number, id: string]

async function roleOf(node: ClusterNode): Promise<string> {
  return String(((await node.redis.call('ROLE')) as unknown[])[0])
}

async function field(node: ClusterNode, name: string): Promise<string> {
  return new RegExp(`^${name}:(\\S*)`, 'm').exec(await node.redis.cluster('INFO'))?.[1] ?? ''
}

async function accepted(call: Promise<unknown> | undefined): Promise<boolean> {
  return (
    (await call?.then(
      () => true,
      () => false,
    )) ?? false
  )
}

/** Nodes tell each other ten times a second. */
const breath = () => Bun.sleep(20)
