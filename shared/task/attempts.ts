/** The errors of a task's failed attempts. They travel in its envelope while it lives, and stay in its final record. */

/** Attempts whose errors are kept: the last ones. */
export const MAX_ATTEMPTS_KEPT = 10
/** Characters of their texts. */
const MAX_TYPE = 100
const MAX_TEXT = 500
/** Bytes that they add to an envelope at most: JSON may write each character of the texts with six. */
export const MAX_ATTEMPTS_BYTES = 65_536

/** How an attempt failed. */
export interface FailedAttempt {
  /** Its number, from 1. */
  attempt: number
  type: string
  message: string
  status_code: number
  /** Milliseconds since the epoch. */
  at: number
}

/** An attempt as it is shown: of one whose worker died, nobody knows when it ended, or how. */
export type ShownAttempt = Omit<FailedAttempt, 'status_code' | 'at'> & { status_code: number | null; at: number | null }

/** Its texts cut to what is kept; `clip` masks them, where they are not masked yet. */
export function failedAttempt(
  { attempt, type, message, status_code, at }: FailedAttempt,
  clip: (text: string, length: number) => string = (text, length) => text.slice(0, length),
): FailedAttempt {
  return { attempt, type: clip(type, MAX_TYPE), message: clip(message, MAX_TEXT), status_code, at }
}

/**
 * The envelope with the error of one more attempt. Its text stays as it is but for the end, where the errors are, so that a payload goes back to the letter, whoever
 * wrote it.
 *
 * @param known The errors that the envelope has, as it was read.
 */
export function noteAttempt(
  envelope: string,
  known: readonly FailedAttempt[] | undefined,
  last: FailedAttempt,
): string {
  const text = envelope.trimEnd()
  const before = known ? endingOf(known) : '}'
  // A foreign envelope may have errors elsewhere: of two fields of one name, the last counts.
  const end = text.length - (text.endsWith(before) ? before.length : 1)
  const kept = [...(known ?? []).filter(({ attempt }) => attempt < last.attempt), last].slice(-MAX_ATTEMPTS_KEPT)
  return text.slice(0, end) + endingOf(kept)
}

function endingOf(attempts: readonly FailedAttempt[]): string {
  return `,"attempts":${JSON.stringify(attempts)}}`
}

/** The last attempts of a task of which so many are over and none ended it. One that left no error was that of a worker that died. */
export function attemptsBefore(known: readonly FailedAttempt[] | undefined, over: number): ShownAttempt[] {
  const errors = new Map(known?.map((one) => [one.attempt, one]))
  const first = Math.max(1, over - MAX_ATTEMPTS_KEPT + 1)
  return Array.from({ length: Math.max(0, over - first + 1) }, (_, i) => errors.get(first + i) ?? lost(first + i))
}

function lost(attempt: number): ShownAttempt {
  const message = 'Its worker died or stopped answering, and left no error.'
  return { attempt, type: 'worker_lost', message, status_code: null, at: null }
}

/** Whether what an envelope or a record has are errors of attempts: any program may have written it. */
export function areAttempts(value: unknown): boolean {
  return Array.isArray(value) && value.length <= MAX_ATTEMPTS_KEPT && value.every(isAttempt)
}

function isAttempt(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  const { attempt, type, message, status_code, at } = value as Record<string, unknown>
  return (
    [attempt, status_code, at].every((number) => Number.isSafeInteger(number) && Number(number) >= 0) &&
    isTextOf(type, MAX_TYPE) &&
    isTextOf(message, MAX_TEXT)
  )
}

function isTextOf(value: unknown, length: number): boolean {
  return typeof value === 'string' && value.length <= length
}
