/** What the two ends of a broker that is held by another runtime say to each other: a line of JSON each. */
import type { Broker } from '#shared/broker/broker.ts'

/** The store that a broker is opened on. */
export type Place =
  | { type: 'sqlite'; path: string; busyTimeoutMs?: number }
  | { type: 'redis'; url: string; namespace: string }

/** A call of a broker's method, or of `open` (with a place) or `unsubscribe` (with the call that subscribed). */
export interface Call {
  id: number
  broker: number
  /** The clock of the test. */
  now: number
  method: keyof Broker | 'open' | 'unsubscribe'
  args: unknown[]
}

/** How a call ended, or what was heard by a subscription that it made. */
export type Answer =
  | { id: number; value: unknown }
  | { id: number; error: { name: string; message: string } }
  | { id: number; event: unknown[] }

/** JSON that keeps numbers which are not finite. U+2028 and U+2029 would end a line for `readline`. */
export function pack(line: Call | Answer): string {
  const text = JSON.stringify(line, (_, value) => (isOdd(value) ? { number: String(value) } : value))
  return text.replaceAll('\u2028', '\\u2028').replaceAll('\u2029', '\\u2029')
}

export const unpack = (line: string): unknown =>
  JSON.parse(line, (_, value) => (typeof value?.number === 'string' ? Number(value.number) : value))

const isOdd = (value: unknown) => typeof value === 'number' && !Number.isFinite(value)
