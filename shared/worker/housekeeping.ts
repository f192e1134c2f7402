/** What goes on beside claiming and running: leases are extended, time limits kept, and the store is swept. */
import type { Broker } from '#shared/broker/broker.ts'
import { SWEEP_LIMIT, sweepOnce } from '#shared/broker/expire.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import { RunAborted, StoreUnavailable } from '#shared/task/errors.ts'
import type { Held } from './held.ts'

export interface HousekeepingDeps {
  readonly broker: Broker
  readonly clock: Clock
  readonly log: Log
  /** Tasks that are held, by their id. */
  readonly held: ReadonlyMap<string, Held>
  /** Forgets what need not be kept. */
  readonly tidy: () => void
}

/** How often running tasks are checked for their time limits. */
const TICK_MS = 250

/** Extends all leases in one call, at a third of their length, and aborts what is no longer ours, until the signal aborts. */
export async function keepLeases(deps: HousekeepingDeps, leaseMs: number, signal: AbortSignal): Promise<void> {
  const { broker, clock, log, held } = deps
  for (;;) {
    await clock.sleep(leaseMs / 3, signal)
    if (signal.aborted) return
    if (held.size === 0) continue
    const asked = [...held.values()]
    try {
      const { lost, cancelled } = await broker.extend(
        asked.map((execution) => {
          const { id, kind, token } = execution.claimed
          return { id, kind, token, progress: execution.progress() }
        }),
        leaseMs,
      )
      const reasons = new Map<string, RunAborted>()
      for (const id of lost) reasons.set(id, new RunAborted('lease_lost', `Task ${id} went to another worker.`))
      for (const id of cancelled) reasons.set(id, new RunAborted('cancelled', `Task ${id} was cancelled or deleted.`))
      for (const execution of asked) {
        const { id } = execution.claimed
        const reason = reasons.get(id)
        // One that was settled, or claimed anew, while the call was under way is left alone.
        if (reason && held.get(id) === execution) execution.abort(reason)
      }
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error
      log.warn('Leases could not be extended', { reason: messageOf(error) })
    }
  }
}

/** Aborts runs whose time is up, and tidies up, until the signal aborts. */
export async function keepTimeLimits({ clock, held, tidy }: HousekeepingDeps, signal: AbortSignal): Promise<void> {
  for (;;) {
    await clock.sleep(TICK_MS, signal)
    if (signal.aborted) return
    const now = clock.now()
    tidy()
    for (const execution of held.values()) {
      const { timeoutAt, claimed } = execution
      if (timeoutAt > now) continue
      const what = `${claimed.kind} task ${claimed.id}`
      execution.abort(new RunAborted('timeout', `${what} did not end within its time limit.`))
    }
  }
}

/** Sweeps the store every `everyMs`, and without a pause while there is more than one sweep takes, until the signal aborts. */
export async function keepSwept(
  { broker, clock, log }: Pick<HousekeepingDeps, 'broker' | 'clock' | 'log'>,
  everyMs: number,
  signal: AbortSignal,
): Promise<void> {
  let behind = false
  for (;;) {
    if (!behind) await clock.sleep(everyMs, signal)
    if (signal.aborted) return
    behind = false
    try {
      // What has expired is forgotten whole: no contract is needed to redact it.
      const { expired, adopted } = await sweepOnce({ broker, contracts: {}, now: clock.now }, SWEEP_LIMIT)
      // Of results to take over a call gives fewer when they are large.
      behind = expired >= SWEEP_LIMIT || adopted > 0
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error
      log.warn('The sweep failed', { reason: messageOf(error) })
    }
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
