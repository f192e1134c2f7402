import type { RateLimit } from '#shared/runtime/doors.ts'

/** How a request fared at a limiter. */
export interface Taken {
  readonly allowed: boolean
  /** Requests that may follow at once. */
  readonly remaining: number
  /** Until the next request is allowed; 0 when it is now. */
  readonly retryAfterMs: number
}

/** A token bucket for each key. */
export interface Limiter {
  readonly limit: RateLimit
  take(key: string): Taken
}

/** Buckets that are remembered. */
const MAX_KEYS = 20_000

/**
 * Counts requests in this process, in bounded memory: beyond `maxKeys` the bucket is forgotten that was not used for the longest time, so it was the
 * fullest. `now` is in ms, and may stand still or go back.
 */
export function createLimiter(
  limit: RateLimit,
  options: { now?: () => number; maxKeys?: number } = {},
): Limiter & { readonly size: number } {
  const { now = Date.now, maxKeys = MAX_KEYS } = options
  const buckets = new Map<string, { level: number; at: number }>()
  return {
    limit,
    get size() {
      return buckets.size
    },
    take(key) {
      const at = now()
      const bucket = buckets.get(key) ?? { level: limit.burst, at }
      const refill = (Math.max(0, at - bucket.at) * limit.perSecond) / 1000
      bucket.level = Math.min(limit.burst, bucket.level + refill)
      bucket.at = at
      const allowed = bucket.level >= 1
      if (allowed) bucket.level--
      buckets.delete(key)
      buckets.set(key, bucket)
      if (buckets.size > maxKeys) {
        const [longestUnused] = buckets.keys()
        if (longestUnused !== undefined) buckets.delete(longestUnused)
      }
      const missing = Math.max(0, 1 - bucket.level)
      return { allowed, remaining: Math.floor(bucket.level), retryAfterMs: (missing * 1000) / limit.perSecond }
    },
  }
}
