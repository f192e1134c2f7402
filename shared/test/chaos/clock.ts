import { readFileSync } from 'node:fs'
import { type Clock, systemClock } from '#shared/runtime/clock.ts'

const LOOK_MS = 20

/** The system's clock, off by the milliseconds that stand in a file, which may change at any time. Sleeping is not affected. */
export function fileClock(path: string | undefined): Clock {
  if (path === undefined) return systemClock
  let offset = 0
  let lookedAt = Number.NEGATIVE_INFINITY
  return {
    now() {
      const elapsed = performance.now()
      if (elapsed - lookedAt > LOOK_MS) {
        lookedAt = elapsed
        offset = Number(readFileSync(path, 'utf8')) || 0
      }
      return Math.round(Date.now() + offset)
    },
    sleep: systemClock.sleep,
  }
}
