import { nextTurn } from '#shared/runtime/clock.ts'
import { type Contract, parsePayload, type ResultOf } from '#shared/task/define.ts'
import { HistoryMismatch, PermanentError, type RunAborted } from '#shared/task/errors.ts'
import { childId } from '#shared/task/task.ts'
import type { CallOptions, Context, Implementation } from './implement.ts'

/** A hundred years: later is no time that every store and language can hold. */
const MAX_SLEEP_MS = 100 * 365 * 86_400_000

/** How far a run came: its handler ended, or it waits for entries of its history that are not there yet. */
export type Progress = { type: 'returned'; value: unknown } | { type: 'threw'; error: unknown } | { type: 'stuck' }

/** Children called together: `ctx.call` is a group of one. Child i has number `first + i`. */
export interface CallGroup {
  readonly type: 'call'
  readonly first: number
  readonly contract: Contract
  readonly payloads: readonly unknown[]
  readonly options: CallOptions
  /** By child; a hole where it has not ended. */
  readonly results: ({ value: unknown } | { error: Error } | undefined)[]
  /** Children, by index, that the store does not know yet. */
  missing: readonly number[]
  settle(): void
}

/** A durable sleep; `until` in ms since the epoch, null before it is known. */
export interface Sleep {
  readonly type: 'sleep'
  readonly first: number
  readonly ms: number
  until: number | null
  stored: boolean
  settle(): void
}

/** What a run needs of the outside while its handler is running. */
export interface RunPorts {
  /** The recorded result of step number n as JSON, or null when it has none. */
  loadStep(n: number, name: string): Promise<string | null>
  /** Records a step; rejects when the task is no longer ours. */
  storeStep(n: number, name: string, json: string): Promise<void>
  emit(chunk: string): void
}

/**
 * One run of a handler, from its start or from history, until it ends or is parked. A parked run that is kept in memory goes on in place when its
 * task is claimed again: nothing but speed depends on that. A class for speed: most runs use nothing of their context, and then nothing is made for them.
 */
export class Run {
  readonly #ports: RunPorts
  readonly #open: (CallGroup | Sleep)[] = []
  #next = 0
  #steps = 0
  #checking = false
  #controller: AbortController | undefined
  #aborted: RunAborted | undefined
  #wakeUp: ((progress: Progress) => void) | undefined
  /** How the handler ended, when it has; at once for one that awaits nothing. */
  finished: Progress | undefined
  /** What the handler told of its progress. */
  progress: { done: number; total: number } | undefined

  /** Starts the handler. */
  constructor(
    implementation: Implementation,
    task: { id: string; attempt: number; payload: unknown },
    ports: RunPorts,
  ) {
    this.#ports = ports
    try {
      const value = implementation.handler(task.payload, new RunContext(this, implementation.contract.kind, task))
      if (!isThenable(value)) this.finished = { type: 'returned', value }
      else {
        Promise.resolve(value).then(
          (result) => this.#report({ type: 'returned', value: result }),
          (error: unknown) => this.#report({ type: 'threw', error }),
        )
      }
    } catch (error) {
      this.finished = { type: 'threw', error }
    }
  }

  /** Waits until the handler has ended or can go no further by itself. */
  advance(): Promise<Progress> {
    if (this.finished) return Promise.resolve(this.finished)
    return new Promise((resolve) => {
      this.#wakeUp = resolve
      this.#check()
    })
  }

  /** What the run waits for, in the order of their numbers. */
  waiting(): readonly (CallGroup | Sleep)[] {
    return this.#open.toSorted((a, b) => a.first - b.first)
  }

  /** Aborts the signal; `advance` then gives the reason, and nothing that the handler awaits of its context ever resolves. */
  abort(reason: RunAborted): void {
    if (this.#aborted) return
    this.#aborted = reason
    this.#controller?.abort(reason)
    this.#report({ type: 'threw', error: reason })
  }

  get signal(): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#aborted && !this.#controller.signal.aborted) this.#controller.abort(this.#aborted)
    return this.#controller.signal
  }

  map<C extends Contract>(
    contract: C,
    payloads: readonly unknown[],
    options: CallOptions = {},
  ): Promise<ResultOf<C>[]> {
    const parsed = payloads.map((payload) => parsePayload(contract, payload))
    const first = this.#next
    this.#next += parsed.length
    if (parsed.length === 0) return Promise.resolve([])
    return this.#enter<ResultOf<C>[]>((resolve, reject, leave) => ({
      type: 'call',
      ...{ first, contract, payloads: parsed, options },
      results: new Array(parsed.length),
      missing: parsed.map((_, i) => i),
      settle() {
        if (!leave()) return
        const failed = this.results.find((result) => result && 'error' in result)
        if (failed && 'error' in failed) return reject(failed.error)
        resolve(this.results.map((result) => (result && 'value' in result ? result.value : undefined)) as ResultOf<C>[])
      },
    }))
  }

  sleep(ms: number): Promise<void> {
    if (!Number.isFinite(ms)) {
      const message = `ctx.sleep takes a number of milliseconds, and was given ${ms}.`
      return Promise.reject(new PermanentError(message, { code: 'bad_sleep' }))
    }
    const first = this.#next++
    return this.#enter<void>((resolve, _reject, leave) => ({
      type: 'sleep',
      ...{ first, ms: Math.round(Math.min(Math.max(ms, 0), MAX_SLEEP_MS)), until: null, stored: false },
      settle() {
        if (leave()) resolve()
      },
    }))
  }

  async step<T>(name: string, effect: () => T | Promise<T>): Promise<T> {
    const n = this.#next++
    this.#steps++
    try {
      const known = await this.#ports.loadStep(n, name)
      if (known !== null) return JSON.parse(known) as T
      const json = JSON.stringify((await effect()) ?? null)
      await this.#ports.storeStep(n, name, json)
      return JSON.parse(json) as T
    } finally {
      this.#steps--
      this.#check()
    }
  }

  emit(chunk: string): void {
    this.#ports.emit(chunk)
  }

  /** Ends the present `advance`, if there is one. */
  #report(result: Progress): void {
    if (result.type !== 'stuck') this.finished ??= result
    this.#wakeUp?.(this.finished ?? result)
  }

  /** The handler is stuck when a whole turn of the event loop has passed, something is awaited, and no step is running. */
  #check(): void {
    if (this.#checking) return
    this.#checking = true
    void nextTurn().then(() => {
      this.#checking = false
      if (this.#open.length > 0 && this.#steps === 0) this.#report({ type: 'stuck' })
    })
  }

  #enter<T>(
    make: (resolve: (value: T) => void, reject: (error: Error) => void, leave: () => boolean) => CallGroup | Sleep,
  ): Promise<T> {
    const promise = new Promise<T>((resolve, reject) => {
      const leave = () => {
        const at = this.#open.indexOf(entry)
        if (at >= 0) this.#open.splice(at, 1)
        return at >= 0 && !this.#aborted
      }
      const entry = make(resolve, reject, leave)
      this.#open.push(entry)
    })
    // A handler may await one call and never look at another one that failed.
    promise.catch(() => undefined)
    this.#check()
    return promise
  }
}

/** What a handler sees. Functions are made when they are asked for, so that they can be taken out of it. */
class RunContext implements Context {
  readonly #run: Run
  readonly taskId: string
  readonly kind: string
  readonly attempt: number

  constructor(run: Run, kind: string, task: { id: string; attempt: number }) {
    this.#run = run
    this.kind = kind
    this.taskId = task.id
    this.attempt = task.attempt
  }

  get idempotencyKey(): string {
    return this.taskId
  }
  get signal(): AbortSignal {
    return this.#run.signal
  }
  get call(): Context['call'] {
    return async (contract, payload, options) => {
      const [result] = await this.#run.map(contract, [payload], options)
      return result as ResultOf<typeof contract>
    }
  }
  get map(): Context['map'] {
    return async (contract, payloads, options) => this.#run.map(contract, payloads, options)
  }
  get step(): Context['step'] {
    return (name, effect) => {
      const result = this.#run.step(name, effect)
      // A handler that does not wait for it must not take the process down.
      result.catch(() => undefined)
      return result
    }
  }
  get sleep(): Context['sleep'] {
    return (ms) => this.#run.sleep(ms)
  }
  get progress(): Context['progress'] {
    return (done, total) => {
      this.#run.progress = { done, total }
    }
  }
  get emit(): Context['emit'] {
    return (chunk) => this.#run.emit(chunk)
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof Reflect.get(value, 'then') === 'function'
}

/** The error for a call that is not the one of the run before. */
export function mismatch(task: { id: string; kind: string }, n: number, before: string, now: string): HistoryMismatch {
  return new HistoryMismatch(
    `Call ${n} of ${task.kind} task ${task.id} was ${before} in an earlier run, and is ${now} now (${childId(task.id, n)}). ` +
      'A handler must make the same calls in the same order each time: keep time, randomness and other side effects in ctx.step.',
  )
}
