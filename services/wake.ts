import type { Log } from '#shared/runtime/log.ts'
import type { Invocation } from './edge.ts'

/** A burst is what comes within so many ms: its tasks are there when the one wake-up arrives. */
const BURST_MS = 50

/** A worker that is woken answers at once, when it has started: one that does not within so many ms is given up. */
const WAKE_TIMEOUT_MS = 10_000

/** A wake-up that is so many ms late ended with its invocation. */
const LOST_AFTER_MS = 500

/**
 * Wakes workers that are called instead of waiting: once per burst of tasks, after the answer, and one call at a time
 * for each.
 */
export interface Waker {
  wake(kinds: readonly string[], invocation: Pick<Invocation, 'config' | 'log' | 'waitUntil'>): void
}

interface Call {
  /** When it must be over, in ms since the epoch. */
  endsAt: number
  /** Whether it has gone: tasks that come from now on may be missed by it. */
  sent: boolean
  /** Whether such tasks have come. */
  again: boolean
}

/** A waker remembers the calls under way; one for each instance of a service. */
export function createWaker({ timeoutMs = WAKE_TIMEOUT_MS } = {}): Waker {
  const calls = new Map<string, Call>()

  async function run(url: string, call: Call, token: string | null, log: Log): Promise<void> {
    let woken = true
    do {
      call.endsAt = Date.now() + BURST_MS
      call.sent = false
      call.again = false
      await new Promise((resolve) => setTimeout(resolve, BURST_MS))
      call.endsAt = Date.now() + timeoutMs
      call.sent = true
      woken = await callDrain(url, { token, timeoutMs, log })
    } while (woken && call.again && calls.get(url) === call)
    if (calls.get(url) === call) calls.delete(url)
  }

  return {
    wake(kinds, { config, log, waitUntil }) {
      const { workerUrls, drain } = config
      const urls = new Set(kinds.flatMap((kind) => workerUrls[kind] ?? workerUrls['*'] ?? []))
      for (const url of urls) {
        const known = calls.get(url)
        if (known && Date.now() < known.endsAt + LOST_AFTER_MS) {
          known.again = known.sent
          continue
        }
        const call: Call = { endsAt: Date.now() + BURST_MS, sent: false, again: false }
        calls.set(url, call)
        waitUntil(run(url, call, drain.token, log))
      }
    },
  }
}

/** True when the worker has heard. */
async function callDrain(
  url: string,
  { token, timeoutMs, log }: { token: string | null; timeoutMs: number; log: Log },
): Promise<boolean> {
  const response = await fetch(`${url}/drain`, {
    method: 'POST',
    headers: { Prefer: 'respond-async', ...(token === null ? {} : { Authorization: `Bearer ${token}` }) },
    signal: AbortSignal.timeout(timeoutMs),
  }).catch(() => null)
  await response?.body?.cancel().catch(() => undefined)
  if (response?.ok) return true
  log.warn('A worker could not be woken; its next schedule will do.', { url, status: response?.status ?? null })
  return false
}
