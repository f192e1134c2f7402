/** What other programs put into the store, judged by the limits of the API. */
import { MAX_ATTEMPTS_BYTES } from './attempts.ts'
import type { Issue } from './errors.ts'
import {
  isDeeperThan,
  isLargerThan,
  isStatusCode,
  MAX_ATTEMPTS,
  MAX_DEPTH,
  MAX_RETENTION_S,
  MAX_TEXT_BYTES,
  MAX_TIMEOUT_MS,
} from './limits.ts'

/** Bytes of a final record: a result and a payload, and the escapes that a text of control characters needs in JSON. */
const MAX_RECORD_BYTES = 8 * MAX_TEXT_BYTES

/** Says what is wrong with a field; null when nothing is. */
type Check = (value: unknown) => string | null

const whole =
  (least: number, most: number): Check =>
  (value) =>
    Number.isInteger(value) && Number(value) >= least && Number(value) <= most
      ? null
      : `Expected a whole number from ${least} to ${most}`

/** The options of a task that a program may set. */
const OPTIONS: Record<string, Check> = {
  max_attempts: whole(1, MAX_ATTEMPTS),
  timeout_ms: whole(1, MAX_TIMEOUT_MS),
  retention_s: whole(0, MAX_RETENTION_S),
}

/** What a program must say of how a task ended. */
const ENDING: Record<string, Check> = {
  // Written as text by some.
  status_code: (value) =>
    (typeof value === 'number' || typeof value === 'string') && isStatusCode(Number(value))
      ? null
      : 'Expected a status code from 200 to 599',
  result: (value) => {
    if (value === undefined) return 'Missing'
    const text = typeof value === 'string' ? value : JSON.stringify(value)
    return isLargerThan(MAX_TEXT_BYTES, text) ? `Larger than ${MAX_TEXT_BYTES} bytes` : null
  },
}

/**
 * Judges a text that another program may have written: an envelope, which must be valid to be run, or a final record.
 * Gives the object that it is, or what is wrong with it. Nothing of it is quoted: it may hold secrets.
 */
export function judgeForeign(
  what: 'envelope' | 'record',
  text: string,
): { value: Record<string, unknown>; issues: null } | { value: null; issues: Issue[] } {
  const wrong = (message: string) => ({ value: null, issues: [{ path: what, message }] })
  const maxBytes = what === 'envelope' ? MAX_TEXT_BYTES : MAX_RECORD_BYTES
  const larger = () => wrong(`Larger than ${maxBytes} bytes`)
  if (isLargerThan(maxBytes + MAX_ATTEMPTS_BYTES, text)) return larger()
  // One level more than a payload may have, which stands in it.
  if (isDeeperThan(MAX_DEPTH + 1, text)) return wrong(`Nested deeper than ${MAX_DEPTH} levels`)
  const value = parseObject(text)
  if (value === null) return wrong('Not a JSON object (in which NaN and Infinity have no form)')
  const added = value['attempts'] === undefined ? 0 : MAX_ATTEMPTS_BYTES
  if (isLargerThan(maxBytes + added, text)) return larger()
  const checks = what === 'envelope' ? OPTIONS : ENDING
  const issues: Issue[] = []
  for (const path of Object.keys(checks)) {
    const field = value[path]
    // An option that is null is left out.
    if (what === 'envelope' && (field === undefined || field === null)) continue
    const message = checks[path]?.(field)
    if (message) issues.push({ path, message })
  }
  return issues.length > 0 ? { value: null, issues } : { value, issues: null }
}

/** The object that a text is in JSON; null when it is none. */
export function parseObject(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null
  } catch {
    return null
  }
}

/** Whether an option of a task has a value that the API takes. */
export function isOption(name: keyof typeof OPTIONS, value: unknown): boolean {
  return OPTIONS[name]?.(value) === null
}
