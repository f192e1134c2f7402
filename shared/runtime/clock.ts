/** Time as a parameter: the system's in production, moved by hand in tests. */
export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number
  /** Resolves after `ms`, or at once when the signal aborts; never rejects. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  now: () => Date.now(),
  sleep(ms, signal) {
    if (signal?.aborted) return Promise.resolve()
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', done)
        resolve()
      }
      // Timers overflow above 2^31 ms; whoever sleeps that long looks again.
      const timer = setTimeout(done, Math.min(Math.max(ms, 0), 0x7fffffff))
      signal?.addEventListener('abort', done, { once: true })
    })
  },
}

/** Resolves when all that can go on without outside help has done so: after the microtasks that are queued now. */
export function nextTurn(): Promise<void> {
  return new Promise(onNextTurn)
}

/** Calls back when all that can go on without outside help has done so. */
export function onNextTurn(call: () => void): void {
  if (typeof setImmediate === 'function') setImmediate(call)
  else setTimeout(call, 0)
}
