import type { CallOf, Contract, PayloadOf, ResultOf } from '#shared/task/define.ts'
import type { Priority } from '#shared/task/task.ts'

/** What a child may be given beside its payload. */
export interface CallOptions {
  /** The parent's when it is not given. */
  priority?: Priority
  maxAttempts?: number
}

/**
 * What a handler is given beside its payload. Calls, steps and sleeps are numbered in the order they are made: a run that begins anew (after waiting, or
 * on another machine) must make the same ones in the same order, and is given what they gave before. Everything else in a handler may run
 * more than once.
 */
export interface Context {
  readonly taskId: string
  readonly kind: string
  /** 1 for the first run; a run that goes on after waiting is the same attempt. */
  readonly attempt: number
  /** The same in each attempt: give it to services that know such keys. */
  readonly idempotencyKey: string
  /** Aborts with a `RunAborted` when the task is cancelled or deleted, its lease is lost, its time is up, or the worker stops. */
  readonly signal: AbortSignal

  /**
   * Runs a task of another kind and resolves with its result. The caller costs nothing while it waits: its run is given up and taken up again.
   *
   * @throws ChildFailed when the child failed or was cancelled.
   * @throws InvalidInput when the payload does not fit the child's kind; nothing was called.
   */
  call<C extends Contract>(contract: C, payload: CallOf<C>, options?: CallOptions): Promise<ResultOf<C>>

  /** `call` for many payloads at once; resolves with the results in their order when all have ended. Rejects with the first failure in that order. */
  map<C extends Contract>(contract: C, payloads: readonly CallOf<C>[], options?: CallOptions): Promise<ResultOf<C>[]>

  /**
   * Runs a side effect and records its result (as JSON), so that later runs get the result instead. It runs again only when the worker died
   * before the result was stored. What it throws is not recorded.
   */
  step<T>(name: string, effect: () => T | Promise<T>): Promise<T>

  /** Waits so many ms without holding a worker, over restarts too. Rejects when `ms` is not a finite number. */
  sleep(ms: number): Promise<void>

  /** Shown with the task while it is live, from the next heartbeat on. */
  progress(done: number, total: number): void

  /** Sends a chunk of text to those who watch the task. Nothing is stored. */
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
