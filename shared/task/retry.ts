/** The rules by which a failed attempt is run again. Every store and worker asks here. */

/** Retry rules of a kind. A task's own `max_attempts` wins over the kind's. */
export interface RetryRules {
  /** Runs in all, the first included. */
  maxAttempts: number
  /** Delay before the second attempt; doubled for each one after. */
  backoffMs: number
  /** The delay never grows over this. */
  maxBackoffMs: number
}

/** Whoever asks to be left alone for longer has made a mistake, or means for ever. */
const MAX_RETRY_AFTER_MS = 86_400_000

export const DEFAULT_RETRY: RetryRules = { maxAttempts: 5, backoffMs: 1_000, maxBackoffMs: 300_000 }

/**
 * Milliseconds to wait after attempt number `attempt` failed: exponential, with "equal jitter" (half fixed, half random), so that tasks
 * that failed together do not come back together. `random` is in [0, 1). A provider's `Retry-After` is a lower bound, up to a day.
 */
export function backoffMs(input: {
  attempt: number
  rules: RetryRules
  random: number
  retryAfterMs?: number | null
}): number {
  const { attempt, rules, random } = input
  const full = Math.min(rules.maxBackoffMs, rules.backoffMs * 2 ** Math.max(0, attempt - 1))
  const jittered = Math.round(full / 2 + (full / 2) * random)
  const atLeast = input.retryAfterMs ?? 0
  return Number.isFinite(atLeast) ? Math.max(jittered, Math.min(Math.round(atLeast), MAX_RETRY_AFTER_MS)) : jittered
}

/** True when a failed attempt may be followed by another. `attempt` is 1 for the first run. */
export function mayRetry(attempt: number, maxAttempts: number): boolean {
  return attempt < maxAttempts
}

/** Reads a `Retry-After` header (seconds or an HTTP date) as milliseconds from `now`; null when it is absent or unreadable. */
export function parseRetryAfter(value: string | null | undefined, now: number): number | null {
  if (!value) return null
  const seconds = Number(value)
  if (Number.isFinite(seconds)) return Math.max(0, seconds * 1000)
  const date = Date.parse(value)
  return Number.isNaN(date) ? null : Math.max(0, date - now)
}
