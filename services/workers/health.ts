import { unlink, writeFile } from 'node:fs/promises'
import type { Broker } from '#shared/broker/broker.ts'
import { type Clock, systemClock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'

/** How often the file is written, in ms. Whoever looks may call a worker sick when the file is older than three times as much. */
export const BEAT_MS = 10_000

/**
 * Writes a file again and again while the event loop of a worker runs and its store answers, until the signal aborts; then it is removed. For health checks of a process
 * that listens on no port. A file that cannot be written is a line in the log, and no reason to end.
 */
export async function keepHealthFile(
  path: string,
  { broker, log, signal, clock = systemClock }: { broker: Broker; log: Log; signal: AbortSignal; clock?: Clock },
): Promise<void> {
  let isTold = false
  while (!signal.aborted) {
    try {
      // One that refuses (it is full) does answer: a worker that is started anew mends nothing there, and this one may free some.
      await broker.ping().catch((error: unknown) => {
        if (!(error instanceof StoreUnavailable && error.refused)) throw error
      })
      await writeFile(path, new Date(clock.now()).toISOString())
      isTold = false
    } catch (error) {
      // Of the store the worker itself says so.
      if (!(error instanceof StoreUnavailable) && !isTold) {
        log.warn('WORKER_HEALTH_FILE cannot be written: the worker will be taken for sick.', { error: String(error) })
        isTold = true
      }
    }
    await clock.sleep(BEAT_MS, signal)
  }
  await unlink(path).catch(() => undefined)
}
