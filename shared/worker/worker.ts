import type { Broker } from '#shared/broker/broker.ts'
import { type Clock, systemClock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import type { Keyring } from '#shared/runtime/seal.ts'
import { createSlices } from '#shared/runtime/slices.ts'
import { Drain, type DrainLimits } from './drain.ts'
import { createExecutor } from './execute.ts'
import { keepSwept } from './housekeeping.ts'
import type { Implementation } from './implement.ts'
import { createKeyAlarm, runnable, tellLeftAlone } from './keys.ts'
import { Outage } from './outage.ts'
import { createTurns } from './turns.ts'

export interface WorkerOptions {
  readonly broker: Broker
  /** The kinds that this worker runs. */
  readonly implementations: readonly Implementation[]
  readonly keyring: Keyring | null
  readonly log: Log
  /** Tasks run at once. Default: the largest of the kinds'. */
  readonly concurrency?: number | undefined
  /** Milliseconds after which a task of a worker that died is taken by another. Leases are extended at a third of it. Default 30,000. */
  readonly leaseMs?: number | undefined
  /** How often, in ms, an idle worker polls for missed wake-ups, expired leases and due delays. Default 1,000. */
  readonly pollMs?: number | undefined
  /** How often, in ms, it looks for expired results and foreign ones. Default 1,000. */
  readonly sweepMs?: number | undefined
  /** How long, in ms, running tasks may finish after a stop; then they are given back. Default 10,000. */
  readonly graceMs?: number | undefined
  readonly clock?: Clock
  readonly random?: () => number
}

export interface DrainReport {
  /** Runs that were started. */
  readonly ran: number
  /** False when the store was asked and never answered. */
  readonly reached: boolean
  /** Whether more is likely to be queued of the kinds of this worker. */
  readonly more: boolean
  /** Kinds of which tasks were queued by what was run: children that were called, and parents that may go on. */
  readonly queued: readonly string[]
}

export interface Worker {
  /** Runs tasks until no more are due, a limit is reached or the signal aborts: then what still runs has the grace to end. Nothing is held when it resolves. */
  drain(limits?: DrainLimits, signal?: AbortSignal): Promise<DrainReport>
  /** Drains and waits for more, until the signal aborts; then stops gracefully: claims no more, lets running tasks end, gives the rest back. */
  loop(signal: AbortSignal): Promise<void>
}

/**
 * A worker for some kinds. Outcomes are settled together, and one settle brings the next tasks. Without a keyring it leaves kinds with secrets alone.
 *
 * @throws ConfigError when there is no keyring and all of its kinds have secrets.
 */
export function createWorker(options: WorkerOptions): Worker {
  const { broker, log, keyring, clock = systemClock, random = Math.random } = options
  const { leaseMs = 30_000, pollMs = 1_000, sweepMs = 1_000, graceMs = 10_000 } = options
  const implementations = runnable(options.implementations, keyring)
  tellLeftAlone(options.implementations, implementations, log)
  const kinds = implementations.map(({ contract }) => contract.kind)
  const concurrency = options.concurrency ?? Math.max(...implementations.map(({ contract }) => contract.concurrency))
  const slices = createSlices()
  const turns = createTurns()
  const outage = new Outage({ clock, log, random })
  const executor = createExecutor({
    broker,
    implementations: new Map(implementations.map((implementation) => [implementation.contract.kind, implementation])),
    keyring,
    clock,
    slices,
    turns,
    random,
    lookMs: pollMs,
    onKeyMissing: createKeyAlarm(log, clock),
  })
  const deps = {
    broker,
    kinds,
    concurrency,
    leaseMs,
    pollMs,
    graceMs,
    clock,
    random,
    log,
    slices,
    turns,
    outage,
    executor,
  }

  return {
    async drain(limits = {}, signal = new AbortController().signal) {
      const drain = new Drain(deps, limits)
      const before = outage.answers
      await drain.run(signal, () => drain.hasWork)
      const reached = outage.answers > before || !outage.isAway
      return { ran: drain.taken, reached, more: drain.more, queued: drain.queued }
    },

    async loop(signal) {
      const drain = new Drain(deps, {})
      const subscription = await broker.subscribe(kinds, (_kind, at) => drain.wake(at))
      const stopped = new AbortController()
      const sweeping = keepSwept({ broker, clock, log }, sweepMs, AbortSignal.any([signal, stopped.signal]))
      const background = sweeping.catch((error) => drain.fail(error))
      try {
        await drain.run(signal, () => true)
      } finally {
        stopped.abort()
        await background
        await subscription.close()
      }
    },
  }
}
