import { partitionKeys } from '#shared/broker/redis/keys.ts'
import { type ClusterNode, CONTROL, NODE_TIMEOUT_MS, startCluster } from '../redis-cluster.ts'
import { type Monitor, newSightings, type Sightings, startMonitor } from './monitor.ts'
import type { Dump, Life } from './recording.ts'
import { dumpPartition, nothingFound } from './redis.ts'
import type { Store } from './store.ts'

/**
 * A Cluster of three primaries with a replica each, where nodes die, change their roles and hand on slots. Each fault
 * finds the Cluster whole, and ends when it is that again.
 */
export interface MortalCluster extends Store {
  readonly url: string
  /** Kills the primary of a partition; its replica takes over, and it comes back as the replica of that. */
  killPrimary(partition: number, downMs: number): Promise<void>
  /** Kills the replica of a partition: nothing is acknowledged there until it is back. */
  killReplica(partition: number, downMs: number): Promise<void>
  /** Primary and replica of a partition change their roles, as for maintenance. */
  failOver(partition: number): Promise<void>
  /** The slot of a partition moves to another primary. */
  moveSlot(partition: number, to: number): Promise<void>
  /** Ends all connections to the primary of a partition. */
  cut(partition: number): Promise<void>
  /** Stops the primary of a partition, for less than it takes to be given up. */
  pause(partition: number, forMs: number): Promise<void>
}

/**
 * What was stored within so many ms before a primary died may not have been acknowledged yet: longer than replicas are
 * waited for.
 */
const UNACKNOWLEDGED_MS = 3_000

export async function createMortalCluster({ partitions }: { partitions: number }): Promise<MortalCluster> {
  const cluster = await startCluster({ args: ['--appendonly', 'no'] })
  const prefixes = Array.from({ length: partitions }, (_, i) => `{${i}}:`)
  const lives: Life[] = []
  const seen = new Map<string, Sightings>()
  const monitors = new Map<ClusterNode, Monitor>()

  const prefixOf = (partition: number) => prefixes[partition % partitions] ?? ''
  const primaryOf = (prefix: string) => cluster.primaryOf(partitionKeys(prefix)[0] ?? '')
  const sightingsOf = (prefix: string) => seen.get(prefix) ?? newSightings()

  async function dumpOf(prefix: string, node: ClusterNode): Promise<Dump> {
    const found = nothingFound()
    await dumpPartition(node.redis, prefix, found)
    return { at: Date.now(), ...found }
  }

  function begin(prefix: string, start: Dump): void {
    const sightings = newSightings()
    seen.set(prefix, sightings)
    lives.push({ part: prefix, replicated: true, start, ...sightings, safeUntil: null, crashedAt: null })
  }

  async function watch(node: ClusterNode): Promise<void> {
    monitors.set(node, await startMonitor(node.port, sightingsOf))
  }

  /** Resolves when all that a node did until now was read. */
  async function caughtUp(node: ClusterNode): Promise<void> {
    const word = crypto.randomUUID()
    const told = monitors.get(node)?.told(word)
    await node.redis.echo(word)
    await told
  }

  /** What would change something waits on this node. On a replica that includes what its primary sends. */
  async function holdWrites(node: ClusterNode): Promise<void> {
    await node.redis.call('CLIENT', 'PAUSE', 60_000, 'WRITE')
  }

  async function letWrite(node: ClusterNode): Promise<void> {
    await node.redis.call('CLIENT', 'UNPAUSE')
  }

  async function primaryIs(prefix: string, node: ClusterNode): Promise<void> {
    while ((await primaryOf(prefix)) !== node) await Bun.sleep(20)
  }

  async function isPrimary({ redis }: ClusterNode): Promise<boolean> {
    return (await redis.info('replication')).includes('role:master')
  }

  const self: MortalCluster = {
    ...{ lives, url: cluster.url },
    async dump() {
      const found = nothingFound()
      for (const prefix of prefixes) await dumpPartition((await primaryOf(prefix)).redis, prefix, found)
      return { at: Date.now(), ...found }
    },
    async killPrimary(partition, downMs) {
      await cluster.untilWhole()
      const prefix = prefixOf(partition)
      const primary = await primaryOf(prefix)
      const replica = await cluster.replicaOf(primary)
      const owned: string[] = []
      for (const one of prefixes) if ((await primaryOf(one)) === primary) owned.push(one)
      const crashedAt = Date.now()
      await primary.kill('SIGKILL')
      // Nobody gets in before it has been looked at.
      await holdWrites(replica)
      await monitors.get(primary)?.ended
      await primaryIs(prefix, replica)
      for (const one of owned) {
        const life = lives.findLast(({ part }) => part === one)
        if (life) Object.assign(life, { crashedAt, safeUntil: crashedAt - UNACKNOWLEDGED_MS })
        begin(one, await dumpOf(one, replica))
      }
      await letWrite(replica)
      await Bun.sleep(downMs)
      await primary.restart()
      await watch(primary)
      await cluster.untilWhole()
    },
    async killReplica(partition, downMs) {
      await cluster.untilWhole()
      const replica = await cluster.replicaOf(await primaryOf(prefixOf(partition)))
      await replica.kill('SIGKILL')
      await Bun.sleep(downMs)
      await replica.restart()
      await watch(replica)
      await cluster.untilWhole()
    },
    async failOver(partition) {
      await cluster.untilWhole()
      const prefix = prefixOf(partition)
      const primary = await primaryOf(prefix)
      const replica = await cluster.replicaOf(primary)
      // What the old primary did is read before the new one does anything.
      await holdWrites(primary)
      await caughtUp(primary)
      await cluster.failOver(replica)
      await letWrite(primary)
      await cluster.untilWhole()
    },
    async moveSlot(partition, to) {
      await cluster.untilWhole()
      const prefix = prefixOf(partition)
      const from = await primaryOf(prefix)
      const others = []
      for (const node of cluster.nodes) if (node !== from && (await isPrimary(node))) others.push(node)
      const target = others[to % others.length]
      if (target) await cluster.moveSlot(prefix, target, () => caughtUp(from))
    },
    async cut(partition) {
      const { redis } = await primaryOf(prefixOf(partition))
      for (const line of String(await redis.call('CLIENT', 'LIST', 'TYPE', 'NORMAL')).split('\n')) {
        const [, id] = /^id=(\d+)/.exec(line) ?? []
        if (id && !line.includes(`name=${CONTROL} `)) await redis.call('CLIENT', 'KILL', 'ID', id)
      }
    },
    async pause(partition, forMs) {
      const primary = await primaryOf(prefixOf(partition))
      await primary.kill('SIGSTOP')
      await Bun.sleep(Math.min(forMs, NODE_TIMEOUT_MS / 4))
      await primary.kill('SIGCONT')
    },
    async stop() {
      for (const monitor of monitors.values()) monitor.close()
      await cluster.stop()
    },
  }
  for (const prefix of prefixes) begin(prefix, { at: Date.now(), ...nothingFound() })
  for (const node of cluster.nodes) await watch(node)
  return self
}
