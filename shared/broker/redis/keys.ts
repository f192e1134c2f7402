/**
 * The layout in Redis: every key that Tasker uses is named here, and described for users in docs/protocol.md.
 * `prefix` is empty, or `{i}:` for partition i of several.
 */

/** Keys of a partition, in the order of the scripts' KEYS. */
export function partitionKeys(prefix: string): string[] {
  return [
    `${prefix}tasks:live`, // hash: id → head, newline, envelope, of every task that has not ended; id, newline → who holds it, of every running one
    `${prefix}tasks`, // hash: id → final record
    `${prefix}tasks:pending`, // hash: id of a parent → number of its children that have not ended
    `${prefix}tasks:expiry`, // sorted set: entries of roots (see common.lua) → when their final records expire
    `${prefix}tasks:sweep`, // string: where the sweep goes on
    `${prefix}tasks:reserved`, // sorted set: id of an ended task that is about to be retried → end of its reservation
    `${prefix}tasks:leases`, // hash: lease of several tasks → their ids; `n:` and the lease → how many of these it still holds
  ]
}

/** Keys of one kind, in the order of the scripts' KEYS. Each state but `queued` is a sorted set. */
export function kindKeys(prefix: string, kind: string): string[] {
  const queue = `${prefix}${kind}_task_queue`
  return [
    `${queue}:high`, // list: envelopes
    queue, // list: envelopes of normal priority, and those of foreign producers
    `${queue}:low`, // list: envelopes
    `${queue}:running`, // lease → when it ends; the lease of a single task is its id
    `${queue}:delayed`, // id → when it is due
    `${queue}:waiting`, // id → when it wakes by itself (+inf: only when its children have ended)
    `${queue}:succeeded`, // entries (see common.lua) → when they ended
    `${queue}:failed`, // the same
    `${queue}:cancelled`, // the same
    `${queue}:broken`, // list: the newest envelopes without a readable id
    `${queue}:counts`, // hash: for each final state by how many its tasks exceed its entries; `dropped`: envelopes still in the queue whose task was cancelled, which a claim drops
  ]
}

/** The set of kinds that were ever registered, in the first partition: no script of tasks needs it. */
export function kindsKey(prefix: string): string {
  return `${prefix}tasks:kinds`
}

/** The number of partitions, in none of them: it must be found by who has another number in mind. */
export function partitionsKey(namespace: string): string {
  return `${namespace}tasks:partitions`
}

/** What is written, for a second, to see whether the store takes changes. */
export function pingKey(prefix: string): string {
  return `${prefix}tasks:ping`
}

/**
 * With several partitions, the last key of every call: nothing is ever there. While its slot moves between nodes of a
 * Cluster, a call that misses a key is refused before it begins; one that finds them all begins, and would be broken
 * off where it takes the last entry from one.
 */
export function absentKey(prefix: string): string {
  return `${prefix}tasks:absent`
}

/**
 * On a Cluster with `TASKER_WAIT_REPLICAS`: an empty string in the partition of such keys, written for replicas to
 * confirm.
 */
export function replicaKey([live = '']: readonly string[]): string {
  return live.replace(/live$/, 'replicas')
}

/** Channels carry hints, never state: what is lost costs only the wait for the next poll. They are common to all partitions. */
export const WAKE_CHANNEL = 'tasks:wake'
export const EVENT_CHANNEL = 'tasks:events'
export const REPLICA_CHANNEL = 'tasks:replicas'
