import type { Log } from '#shared/runtime/log.ts'
import type { Invocation } from './edge.ts'

/** A burst is what comes within so many ms: its tasks are there when the one wake-up arrives. */
const BURST_MS = 50

/** Wakes workers that are called instead of waiting: once per burst of tasks, after the answer. */
export interface Waker {
  wake(kinds: readonly string[], invocation: Pick<Invocation, 'config' | 'log' | 'waitUntil'>): void
}

/** A waker remembers when wake-ups were about to go; one for each instance of a service. */
export function createWaker(): Waker {
  const pending = new Map<string, number>()
  return {
    wake(kinds, { config, log, waitUntil }) {
      const { workerUrls, drain } = config
      const urls = new Set(kinds.flatMap((kind) => workerUrls[kind] ?? workerUrls['*'] ?? []))
      for (const url of urls) {
        // One that should have gone long ago ended with its invocation.
        const since = pending.get(url)
        if (since !== undefined && Date.now() - since < 10 * BURST_MS) continue
        pending.set(url, Date.now())
        waitUntil(
          new Promise((resolve) => setTimeout(resolve, BURST_MS)).then(() => {
            pending.delete(url)
            return callDrain(url, drain.token, log)
          }),
        )
      }
    },
  }
}

async function callDrain(url: string, token: string | null, log: Log): Promise<void> {
  const response = await fetch(`${url}/drain`, {
    method: 'POST',
    headers: { Prefer: 'respond-async', ...(token === null ? {} : { Authorization: `Bearer ${token}` }) },
  }).catch(() => null)
  await response?.body?.cancel()
  if (!response?.ok)
    log.warn('A worker could not be woken; its next schedule will do.', { url, status: response?.status ?? null })
}
