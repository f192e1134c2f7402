import { MANY_ATTEMPTS, type Spec, tasksIn } from './kinds.ts'
import type { Random } from './random.ts'

/** One creation over HTTP: a task, or a batch of sums. */
export interface Creation {
  /** Milliseconds since the start. */
  readonly at: number
  readonly specs: readonly Spec[]
  readonly options: { priority?: 'high' | 'low'; delay_ms?: number; max_attempts?: number }
  /** With a key it is sent until it is acknowledged, and all times are one task. */
  readonly key: string | null
  /** Milliseconds after the acknowledgement at which it is cancelled. */
  readonly cancelAfterMs: number | null
}

/** Creations whose tasks are about `tasks` in all, spread over `spanMs`. A few of them run for longer than a lease. */
export function planCreations(
  random: Random,
  { tasks, spanMs, leaseMs }: { tasks: number; spanMs: number; leaseMs: number },
): Creation[] {
  const creations: Omit<Creation, 'at'>[] = []
  let planned = 0
  while (planned < tasks) {
    const specs = drawSpecs(random)
    const single = specs.length === 1
    const delayed = single && random.next() < 0.15
    const priority = single ? random.weighted({ normal: 8, high: 1, low: 1 }) : 'normal'
    creations.push({
      specs,
      options: {
        ...(priority === 'normal' ? {} : { priority }),
        ...(delayed ? { delay_ms: random.whole(1, 1_500) } : {}),
        ...(specs[0]?.kind === 'brittle' ? {} : { max_attempts: MANY_ATTEMPTS }),
      },
      key: single && random.next() < 0.6 ? `key-${creations.length}-${random.whole(0, 2 ** 31)}` : null,
      cancelAfterMs: single && random.next() < 0.06 ? random.whole(0, 300) : null,
    })
    planned += specs.reduce((sum, spec) => sum + tasksIn(spec), 0)
  }
  // Only heartbeats keep their leases. They come early, so that faults meet them.
  const long = Math.max(6, Math.round(creations.length / 100))
  for (let i = 0; i < long; i++) {
    const payload = { ms: Math.round(1.5 * leaseMs), value: random.whole(0, 1_000_000) }
    const options = { max_attempts: MANY_ATTEMPTS }
    const creation = { specs: [{ kind: 'slow' as const, payload }], options, key: `long-${i}`, cancelAfterMs: null }
    creations.splice(Math.floor((i / long) * 0.6 * creations.length), 0, creation)
  }
  return creations.map((creation, i) => ({ ...creation, at: (i / creations.length) * spanMs }))
}

function drawSpecs(random: Random): Spec[] {
  const value = random.whole(0, 1_000_000)
  const reason = `reason ${value}`
  const sum = (): Spec => ({ kind: 'sum', payload: { num1: random.whole(0, 1_000_000), num2: random.whole(0, 99) } })
  switch (
    random.weighted({
      ...{
        sum: 30,
        sums: 5,
        sequence: 14,
        tree: 6,
        flaky: 9,
        doomed: 5,
        rescue: 7,
        slow: 9,
        brittle: 4,
        steps: 12,
        branches: 8,
      },
    })
  ) {
    case 'sum':
      return [sum()]
    case 'sums':
      return Array.from({ length: random.whole(2, 60) }, sum)
    case 'sequence':
      return [{ kind: 'sequence', payload: { n: random.whole(0, 40) } }]
    case 'tree':
      return [
        { kind: 'tree', payload: { depth: random.whole(0, 2), width: random.whole(1, 3), n: random.whole(1, 8) } },
      ]
    case 'flaky':
      return [{ kind: 'flaky', payload: { fails: random.whole(1, 4), value } }]
    case 'doomed':
      return [{ kind: 'doomed', payload: { reason } }]
    case 'rescue':
      return [{ kind: 'rescue', payload: { reason } }]
    case 'slow':
      return [{ kind: 'slow', payload: { ms: random.whole(10, 600), value } }]
    case 'brittle':
      return [{ kind: 'brittle', payload: { ms: random.whole(10, 600), value } }]
    case 'branches':
      return [{ kind: 'branches', payload: { count: random.whole(1, 6), napMs: random.pick([0, 5, 30, 150]) } }]
    case 'steps':
      return [{ kind: 'steps', payload: { count: random.whole(1, 4), napMs: random.pick([0, 0, 20, 150]) } }]
  }
}

const FAULT_WEIGHTS = {
  /** kill -9 of a process of Tasker's, started again a little later. */
  kill: 10,
  /** SIGTERM: what a deployment does. */
  terminate: 3,
  /** SIGSTOP, and SIGCONT after `forMs`. */
  pause: 6,
  /** The same of a worker, for one and a half leases: others have its tasks when it goes on. */
  'long pause': 2,
  /** All connections of a process to Redis are cut. */
  cut: 12,
  /** Redis acts, and its next answer to a process is lost with the connection. */
  'lose answer': 20,
  /** A process does not reach Redis for `forMs`. */
  partition: 5,
  /** The clock of a process jumps, by less than leases allow. */
  clock: 10,
  /** For `forMs` the clock of a process is ahead by much more than a lease, or behind. */
  'leap ahead': 1,
  'leap back': 1,
  /** kill -9 of Redis, started again on the same files. */
  'redis kill': 2,
  /** Redis is killed, and what it had not yet synced is gone: with `everysec` only. */
  'redis power cut': 2,
  /** SIGSTOP of Redis for `forMs`. */
  'redis pause': 2,
  /** On a Cluster, each of a partition: kill -9 of its primary, which its replica replaces. */
  'primary kill': 1,
  /** kill -9 of its replica. */
  'replica kill': 1,
  /** Primary and replica change their roles, as for maintenance. */
  'fail-over': 2,
  /** Its slot moves to another primary. */
  'slot move': 8,
} as const

export type FaultType = keyof typeof FAULT_WEIGHTS

export interface Fault {
  /** Milliseconds since the start. */
  readonly at: number
  readonly type: FaultType
  /** Which process, as a number to be taken modulo those that there are. */
  readonly target: number
  readonly forMs: number
  /** Whether it waits until there is whom it concerns; others are left out then. */
  readonly certain: boolean
  /** For a clock: its offset, from -1 to 1 of what is allowed. For a power cut: how much of the last second is gone. */
  readonly amount: number
}

/** Faults spread over `spanMs`, one every `everyMs` or so, each type at least once. */
export function planFaults(
  random: Random,
  options: { spanMs: number; everyMs: number; leaseMs: number; types: readonly FaultType[] },
): Fault[] {
  const { spanMs, everyMs, leaseMs, types } = options
  const weights = Object.fromEntries(types.map((type) => [type, FAULT_WEIGHTS[type]])) as Record<FaultType, number>
  const faults: Fault[] = []
  // Each type comes once for certain, spread over the run; the rest is chance.
  const certain = types.map((type, i) => ({ type, at: ((i + 0.5) / types.length) * spanMs }))
  for (let at = everyMs; at < spanMs; at += everyMs * (0.5 + random.next()))
    faults.push(draw(random.weighted(weights), at, false))
  for (const { type, at } of certain) faults.push(draw(type, at, true))
  return faults.toSorted((a, b) => a.at - b.at)

  function draw(type: FaultType, at: number, certain: boolean): Fault {
    const long = random.next() < 0.3
    const longest = Math.min(type === 'redis pause' && long ? 6_000 : 800, spanMs / 4)
    return {
      ...{ at, type, certain },
      target: random.whole(0, 999),
      forMs: type === 'long pause' ? 1.5 * leaseMs : random.whole(50, longest),
      amount: random.next() * 2 - 1,
    }
  }
}
