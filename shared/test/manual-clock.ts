import type { Clock } from '#shared/runtime/clock.ts'

export interface ManualClock extends Clock {
  /** Moves time on and wakes who sleeps until then. */
  advance(ms: number): void
}

/** A clock that stands still until it is moved. */
export function manualClock(start = 1_700_000_000_000): ManualClock {
  let time = start
  const sleepers = new Set<{ at: number; wake: () => void }>()
  return {
    now: () => time,
    sleep(ms, signal) {
      if (signal?.aborted || ms <= 0) return Promise.resolve()
      return new Promise((resolve) => {
        const sleeper = {
          at: time + ms,
          wake() {
            sleepers.delete(sleeper)
            signal?.removeEventListener('abort', sleeper.wake)
            resolve()
          },
        }
        sleepers.add(sleeper)
        signal?.addEventListener('abort', sleeper.wake, { once: true })
      })
    },
    advance(ms) {
      time += ms
      for (const sleeper of [...sleepers]) if (sleeper.at <= time) sleeper.wake()
    },
  }
}
