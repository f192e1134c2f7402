/** Errors that callers tell apart by `code`; the HTTP layer maps them to answers in one place. */
export class TaskerError extends Error {
  readonly code: string
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = new.target.name
    this.code = code
  }
}

/** One thing that is wrong with an input: where (`payload.num1`) and what. */
export interface Issue {
  path: string
  message: string
}

/** The input does not fit the schema of its kind. Retrying cannot help. */
export class InvalidInput extends TaskerError {
  readonly issues: Issue[]
  constructor(message: string, issues: Issue[]) {
    super('invalid_input', message)
    this.issues = issues
  }
}

/**
 * Thrown by a handler to fail its task at once, whatever attempts are left.
 * The final record carries `statusCode` and the message.
 */
export class PermanentError extends TaskerError {
  readonly statusCode: number
  constructor(message: string, options: ErrorOptions & { statusCode?: number; code?: string } = {}) {
    super(options.code ?? 'permanent', message, options)
    this.statusCode = options.statusCode ?? 500
  }
}

/** Thrown by a handler to be run again not before `afterMs` (a provider's `Retry-After`); it uses an attempt. */
export class RetryLater extends TaskerError {
  readonly afterMs: number | null
  readonly statusCode: number
  constructor(message: string, options: ErrorOptions & { afterMs?: number | null; statusCode?: number } = {}) {
    super('retry_later', message, options)
    this.afterMs = options.afterMs ?? null
    this.statusCode = options.statusCode ?? 503
  }
}

/** What `await ctx.call(…)` rejects with when the child failed or was cancelled. */
export class ChildFailed extends TaskerError {
  readonly taskId: string
  readonly statusCode: number
  constructor(child: { taskId: string; kind: string; statusCode: number; type: string; message: string }) {
    super(child.type, child.message)
    this.taskId = child.taskId
    this.statusCode = child.statusCode
  }
}

/** A re-run called something else than the run before it: the handler is not deterministic, or was changed. */
export class HistoryMismatch extends PermanentError {
  constructor(message: string) {
    super(message, { code: 'history_mismatch' })
  }
}

/** Why `ctx.signal` aborted: the lease went to another worker, the task was cancelled, its time was up, the worker stops, or the run was given up while its task waits. */
export class RunAborted extends TaskerError {
  constructor(reason: 'lease_lost' | 'cancelled' | 'timeout' | 'stopping' | 'parked', message: string) {
    super(reason, message)
  }
}

/** The store did not answer, or refused. Nothing is known to have been accepted. The message names the operation, never its data. */
export class StoreUnavailable extends TaskerError {
  /** The store answered, and would not do what it was asked; it may do something else. */
  readonly refused: boolean
  constructor(message: string, options: ErrorOptions & { refused?: boolean } = {}) {
    super('store_unavailable', message, options)
    this.refused = options.refused ?? false
  }
}

/** This process lacks a key for secret fields: another one may have it, so the task waits. */
export class KeyMissing extends TaskerError {
  constructor(what: string) {
    super(
      'key_missing',
      `This process lacks ${what}: set TASKER_SECRET or TASKER_SECRET_FILE as in the process that created it.`,
    )
  }
}

/** No task with this id is known. */
export class TaskNotFound extends TaskerError {
  constructor(id: string) {
    super('task_not_found', `There is no task ${id}. It may have been deleted, or its result may have expired.`)
  }
}

/** The task's state does not allow the operation. */
export class StateConflict extends TaskerError {
  constructor(message: string) {
    super('state_conflict', message)
  }
}
