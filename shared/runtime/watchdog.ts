import { Worker } from 'node:worker_threads'

/** What the thread is given. */
export interface Watched {
  /** One number, which grows while the event loop turns. */
  readonly turns: SharedArrayBuffer
  readonly everyMs: number
}

/** The thread looks so many times before it gives up: time in which all of the process stood still, its thread too, does not count. */
export const LOOKS = 10

/**
 * Ends this process with SIGKILL, after a line on stderr, when its event loop has stood still for `ms`, or a second if that is longer: a handler that never gives it back keeps
 * heartbeats, time limits and signals from being seen, so nothing in the process itself can end it. Whoever runs the process starts it again.
 */
export function watchEventLoop(ms: number): { stop(): Promise<void> } {
  const everyMs = Math.max(100, ms / LOOKS)
  const turns = new SharedArrayBuffer(4)
  const counter = new Int32Array(turns)
  const timer = setInterval(() => Atomics.add(counter, 0, 1), everyMs / 2)
  timer.unref()
  const workerData: Watched = { turns, everyMs }
  const thread = new Worker(new URL('watchdog-thread.ts', import.meta.url), { workerData })
  thread.unref()
  return {
    async stop() {
      clearInterval(timer)
      await thread.terminate()
    },
  }
}
