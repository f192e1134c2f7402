import type { CallOf, Contract, PayloadOf, ResultOf } from '#shared/task/define.ts'
import type { Priority } from '#shared/task/task.ts'

/** What a child may be given beside its payload. */
export interface CallOptions {
  /** The parent's when it is not given. */
  priority?: Priority
  /** 1 to 100; the kind's when it is not given. */
  maxAttempts?: number
}

/**
 * What a handler is given beside its payload. Calls, steps and sleeps are numbered in the order in which they are made. They complete for the handler one at a
 * time, and the order of that is kept: a run that begins again (after waiting, or on another machine) is given the same in the same order, and must make the same
 * calls. Everything else in a handler may run more than once. See docs/handlers.md.
 *
 * What a handler does must follow from its payload and from what it awaits here. An entry that is made after a wait for something else, while another entry is
 * open, fails the task at once with code `outside_wait`; one that is made inside of a step with `call_in_step`; one in the handler's last turn that nobody awaits with
 * `not_awaited`. Made when the run is over, it rejects with `run_over`.
 */
export interface Context {
  readonly taskId: string
  readonly kind: string
  /** 1 for the first run; a run that goes on after waiting is the same attempt. */
  readonly attempt: number
  /** The same in each attempt: give it to services that know such keys. */
  readonly idempotencyKey: string
  /**
   * Aborts with a `RunAborted` when the task is cancelled or deleted, its lease is lost, its time is up, the worker stops, or the task waits and its run is
   * given up (code `parked`).
   */
  readonly signal: AbortSignal

  /**
   * Runs a task of another kind and resolves with its result. The caller costs nothing while it waits: its run is given up and taken up again. The payload is
   * validated and copied at the call.
   *
   * @throws ChildFailed when the child failed or was cancelled.
   * @throws InvalidInput when the payload or an option does not fit, or JSON cannot hold the payload; nothing was called.
   * @throws PermanentError with code `too_large` when the payload is over 1 MiB.
   */
  call<C extends Contract>(contract: C, payload: CallOf<C>, options?: CallOptions): Promise<ResultOf<C>>

  /** `call` for many payloads at once; resolves with the results in their order when all have ended. Rejects with the first failure in that order. */
  map<C extends Contract>(contract: C, payloads: readonly CallOf<C>[], options?: CallOptions): Promise<ResultOf<C>[]>

  /**
   * Runs a side effect and records its result as JSON, so that later runs get the result instead. It runs again only when the worker died before the result was
   * stored. It begins once the handler rests, and not at all in a run that is over.
   *
   * @throws what the effect threw, as an error with the same name, message, `code` and `status`; Tasker's own errors keep their class. It is recorded when the
   * handler goes on from it to another entry; uncaught, the next attempt tries the step again.
   * @throws PermanentError with code `bad_step_result` when JSON cannot hold the result, `too_large` when it is over 1 MiB. The effect is not repeated.
   */
  step<T>(name: string, effect: () => T | Promise<T>): Promise<T>

  /** Waits so many ms without holding a worker, over restarts too. @throws PermanentError with code `bad_sleep` when `ms` is not a finite number. */
  sleep(ms: number): Promise<void>

  /** Shown with the task while it is live, from the next heartbeat on. Ignored once the run is over. @throws PermanentError when these are not numbers of at least 0. */
  progress(done: number, total: number): void

  /** Sends a chunk of text to those who watch the task. Nothing is stored. Ignored once the run is over. */
  emit(chunk: string): void
}

export type Handler<C extends Contract> = (payload: PayloadOf<C>, ctx: Context) => ResultOf<C> | Promise<ResultOf<C>>

/** A contract and its handler. */
export interface Implementation<C extends Contract = Contract> {
  readonly contract: C
  // A method, so that implementations of any kind fit in one list.
  handler(payload: PayloadOf<C>, ctx: Context): ResultOf<C> | Promise<ResultOf<C>>
}

/**
 * Gives a kind its handler.
 *
 * @example
 * ```ts
 * export default implement(sum, ({ num1, num2 }) => num1 + num2)
 * ```
 */
export function implement<C extends Contract>(contract: C, handler: Handler<C>): Implementation<C> {
  return { contract, handler }
}
