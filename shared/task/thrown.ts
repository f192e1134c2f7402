import { ChildFailed, InvalidInput, type Issue, PermanentError, RetryLater, TaskerError } from './errors.ts'
import { isStatusCode } from './limits.ts'
import type { Mask } from './mask.ts'
import type { TaskError } from './task.ts'

/** Characters of an error's message that are kept. */
export const MAX_MESSAGE = 10_000
/** Of its code and its name. */
export const MAX_NAME = 200

/**
 * An error as a history keeps it. It is thrown again from this, in its first run too, so that a handler sees the same each time: its class where it is one of
 * Tasker's, else an Error with its name, message, code and status.
 */
export interface Thrown extends TaskError {
  status_code: number
  name?: string
  class?: 'permanent' | 'retry_later' | 'invalid_input' | 'child_failed'
  after_ms?: number
  issues?: Issue[]
  task_id?: string
  /** `code` and `status` of an error that is none of Tasker's, when they are text or numbers. */
  code?: string | number
  status?: number
}

/** What was thrown, in words. A handler may throw anything: what has no text, or an error whose message is none. */
export function textOf(thrown: unknown): string {
  try {
    const said: unknown = thrown instanceof Error ? thrown.message : thrown
    return typeof said === 'string' ? said : (JSON.stringify(said) ?? String(said))
  } catch {
    return 'The handler threw something that has no text.'
  }
}

/** Writes what was thrown, without the secrets. */
export function encodeThrown(error: unknown, { clip: clean }: Pick<Mask, 'clip'>): Thrown {
  const thrown: Thrown = { type: 'error', message: clean(textOf(error), MAX_MESSAGE), status_code: 500 }
  if (error instanceof TaskerError) thrown.type = clean(String(error.code), MAX_NAME)
  if (error instanceof InvalidInput) {
    const issues = error.issues.slice(0, 20).map(({ path, message }) => ({
      path: clean(path, MAX_NAME),
      message: clean(message, MAX_NAME),
    }))
    return { ...thrown, class: 'invalid_input', status_code: 422, issues }
  }
  if (error instanceof RetryLater) {
    const { statusCode, afterMs } = error
    return { ...thrown, class: 'retry_later', status_code: statusCodeOf(statusCode), ...finite('after_ms', afterMs) }
  }
  if (error instanceof ChildFailed) {
    const { statusCode, taskId } = error
    return { ...thrown, class: 'child_failed', status_code: statusCodeOf(statusCode), task_id: clean(taskId, MAX_NAME) }
  }
  if (error instanceof PermanentError) {
    return { ...thrown, class: 'permanent', status_code: statusCodeOf(error.statusCode) }
  }
  if (!(error instanceof Error)) return thrown
  if (error.name !== 'Error') thrown.name = clean(String(error.name), MAX_NAME)
  const { code, status } = error as { code?: unknown; status?: unknown }
  if (typeof code === 'string') thrown.code = clean(code, MAX_NAME)
  return { ...thrown, ...finite('code', code), ...finite('status', status) }
}

/** The error again. */
export function decodeThrown(thrown: Thrown): Error {
  const { type, message, status_code: statusCode } = thrown
  switch (thrown.class) {
    case 'invalid_input':
      return new InvalidInput(message, thrown.issues ?? [])
    case 'retry_later':
      return new RetryLater(message, { afterMs: thrown.after_ms ?? null, statusCode })
    case 'child_failed':
      return new ChildFailed({ taskId: thrown.task_id ?? '', kind: '', statusCode, type, message })
    case 'permanent':
      return new PermanentError(message, { code: type, statusCode })
    default: {
      const error = new Error(message)
      if (thrown.name !== undefined) error.name = thrown.name
      const { code, status } = thrown
      return Object.assign(error, code === undefined ? {} : { code }, status === undefined ? {} : { status })
    }
  }
}

/** A status code as an answer may have it: a handler may give anything. */
export function statusCodeOf(value: unknown): number {
  return isStatusCode(value) ? value : 500
}

function finite<Name extends string>(name: Name, value: unknown): Partial<Record<Name, number>> {
  return typeof value === 'number' && Number.isFinite(value) ? ({ [name]: value } as Record<Name, number>) : {}
}
