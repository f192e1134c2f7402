import { type Cluster, Command, type Redis } from 'ioredis'

/**
 * A slot that has moved since the map was read, and moves again meanwhile, is followed so many times within one call.
 */
const MAX_HOPS = 4

/**
 * Sends to the primary that serves a key. The client keeps connections and the map of slots, but its own sending is
 * left aside: it repeats a call whose connection was lost, and one that was refused (MOVED, ASK, TRYAGAIN, CLUSTERDOWN)
 * even when that was given up meanwhile. Nobody would mark such a call as sent before, and its tasks would be queued
 * twice.
 *
 * Here a call is sent once. Only after MOVED it goes to the node that is named: it did not run, and its caller still
 * waits. Everything else is told to the caller; what is known of the slots is then asked for again.
 */
export async function onPrimary<T>(cluster: Cluster, key: string, send: (primary: Redis) => Promise<T>): Promise<T> {
  const slot = new Command('exists', [key]).getSlot() ?? 0
  for (let hops = 0; ; hops++) {
    let primary = serving(cluster, slot)
    if (!primary) {
      await readSlots(cluster)
      primary = serving(cluster, slot)
    }
    try {
      if (!primary) throw new Error('No node of the Cluster is known to serve the slot.')
      await connected(primary)
      return await send(primary)
    } catch (error) {
      const moved = /^MOVED \d+ (.*):(\d+)$/.exec(error instanceof Error ? error.message : '')
      if (!moved || hops === MAX_HOPS) {
        void readSlots(cluster)
        throw error
      }
      const [, host, port] = moved
      cluster.slots[slot] = [`${host || primary?.options.host}:${port}`]
    }
  }
}

/** The connection to whoever is known to serve a slot. */
function serving(cluster: Cluster, slot: number): Redis | undefined {
  const [address] = cluster.slots[slot] ?? []
  return cluster.nodes('all').find(({ options }) => `${options.host}:${options.port}` === address)
}

/** Asks the nodes who serves what. Many may ask at once: the client does so once. */
function readSlots(cluster: Cluster): Promise<void> {
  return new Promise((resolve) => cluster.refreshSlotsCache(() => resolve()))
}

const connecting = new WeakMap<Redis, Promise<void>>()

/**
 * Resolves when a node can be sent to, and rejects when it cannot be reached. Nothing is given to a connection before:
 * what it keeps until it is there, it would send even after the call was given up.
 */
export function connected(node: Redis): Promise<void> {
  if (node.status === 'ready') return Promise.resolve()
  const known = connecting.get(node)
  if (known) return known
  const ready = new Promise<void>((resolve, reject) => {
    if (node.status === 'wait') node.connect().catch(() => undefined)
    if (node.status === 'end') reject(new Error('The connection to the node has ended.'))
    node.once('ready', resolve)
    node.once('end', () => reject(new Error('The node cannot be reached.')))
  })
  connecting.set(node, ready)
  return ready.finally(() => connecting.delete(node))
}
