/** What long-lived processes do about kinds when they start. */
import type { Broker } from '#shared/broker/broker.ts'
import { liveOf, unregisteredKinds } from '#shared/broker/unregistered.ts'
import { type Clock, systemClock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { contracts } from './workers/contracts.ts'

/** How often it is tried while the store does not answer, in ms. */
const AGAIN_MS = 5_000

/**
 * Notes the kinds of the registry in the store, so that their tasks are found when a later version has them no more, and says which tasks wait of kinds that this version
 * has no more. In the background: it goes on trying until the store answers or the signal aborts.
 *
 * @param more Kinds that the process runs beside those of the registry.
 */
export async function noteKinds(
  deps: { broker: Broker; log: Log; signal: AbortSignal; clock?: Clock },
  more: readonly string[] = [],
): Promise<void> {
  const { broker, log, signal, clock = systemClock } = deps
  const registered = [...new Set([...Object.keys(contracts), ...more])]
  while (!signal.aborted) {
    try {
      await broker.kinds(registered)
      const waiting = (await unregisteredKinds(broker, registered)).filter((stats) => liveOf(stats) > 0)
      if (waiting.length === 0) return
      const tasks = Object.fromEntries(waiting.map((stats) => [stats.kind, liveOf(stats)]))
      log.warn(
        'Tasks wait of kinds that are not registered here, and nothing here runs them: see GET /stats. Cancel or delete them, or bring the kinds back.',
        { tasks },
      )
      return
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error
      await clock.sleep(AGAIN_MS, signal)
    }
  }
}
