/** What a task may be, whoever made it: what the API refuses is refused of foreign programs, too. */
import { bytesOf } from './json.ts'

/**
 * Levels of arrays and objects that a request and a payload may have; readers of the queue in other languages have
 * limits of their own.
 */
export const MAX_DEPTH = 100

/** Levels that a result may have that is JSON. */
export const MAX_RESULT_DEPTH = 1_000

/**
 * Bytes of UTF-8 that a payload, a result and a foreign envelope may have: more would not pass the limits of stores and
 * of readers.
 */
export const MAX_TEXT_BYTES = 1_048_576

/** Runs of a task in all. */
export const MAX_ATTEMPTS = 100

/** The longest time limit of a stretch of running, in ms: a day. */
export const MAX_TIMEOUT_MS = 86_400_000

/** The longest time before a task is queued, in ms: 365 days. */
export const MAX_DELAY_MS = 365 * 86_400_000

/** The longest time that a result is kept, in seconds: 100 years. */
export const MAX_RETENTION_S = 100 * 31_536_000

/** Whether a text has more than so many bytes. Nearly all are too short for it to be counted. */
export function isLargerThan(bytes: number, text: string): boolean {
  return text.length * 3 > bytes && bytesOf(text) > bytes
}

/** The status that an answer ends with, in a final record as over HTTP. */
export function isStatusCode(value: unknown): value is number {
  return Number.isInteger(value) && Number(value) >= 200 && Number(value) <= 599
}

/** A trace that a task is part of, as W3C Trace Context writes it. */
export function isTraceparent(value: unknown): value is string {
  return typeof value === 'string' && /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/.test(value)
}

/**
 * Whether JSON is nested deeper than so many levels. Counts brackets outside of strings, before anything is built of
 * them.
 */
export function isDeeperThan(levels: number, json: string): boolean {
  if (json.length <= 2 * levels || !hasMore(levels, json)) return false
  let depth = 0
  let inString = false
  for (let at = 0; at < json.length; at++) {
    const char = json.charCodeAt(at)
    if (inString) {
      if (char === BACKSLASH) at++
      else if (char === QUOTE) inString = false
    } else if (char === QUOTE) inString = true
    else if (char === ARRAY || char === OBJECT) {
      if (++depth > levels) return true
    } else if (char === ARRAY_END || char === OBJECT_END) depth--
  }
  return false
}

const [QUOTE, BACKSLASH, ARRAY, ARRAY_END, OBJECT, OBJECT_END] = [...'"\\[]{}'].map((char) => char.charCodeAt(0))

/**
 * Whether a text has more opening brackets than so many: the search of the runtime is much faster than a loop, and
 * nearly always finds few.
 */
function hasMore(count: number, text: string): boolean {
  let found = 0
  for (const bracket of '[{') {
    for (let at = text.indexOf(bracket); at >= 0 && found <= count; at = text.indexOf(bracket, at + 1)) found++
  }
  return found > count
}
