import type { Claimed } from '#shared/broker/broker.ts'
import { onNextTurn } from '#shared/runtime/clock.ts'
import type { Contract, ResultOf } from '#shared/task/define.ts'
import { PermanentError, type RunAborted } from '#shared/task/errors.ts'
import { type Mask, NO_MASK } from '#shared/task/mask.ts'
import { CallEntry, type Entry, SleepEntry, StepEntry } from './entries.ts'
import type { CallOptions, Context, Implementation } from './implement.ts'
import { limitText } from './limits.ts'
import type { Turn, Turns } from './turns.ts'

/** How a handler ended. */
export type End = { type: 'returned'; value: unknown } | { type: 'threw'; error: unknown }

/**
 * The handler's side of one run: it numbers what the handler calls, sleeps and steps, and delivers what has completed, one at a time. What a
 * handler does is then a function of the order of the deliveries. A class for speed: most runs use nothing of their context, and then nothing is made for them.
 */
export class Run {
  readonly task: Pick<Claimed, 'id' | 'kind' | 'attempt' | 'calls'>
  readonly #emit: (id: string, chunk: string) => void
  readonly #mask: Mask
  /** What it emits, where there are secrets to hide. */
  #chunks: ReturnType<Mask['chunks']> | undefined
  /** The turn in which the handler was started. */
  readonly #start: Turn
  readonly #turns: Turns
  /** Something was delivered, and the handler has not come to rest: what it does now follows from its history alone. */
  #isDelivering = false
  #open: Map<number, Entry> | undefined
  #made: Entry[] | undefined
  #next = 0
  #controller: AbortController | undefined
  #aborted: RunAborted | undefined
  #isStarting = false
  #checking = false
  #isAtRest = false
  #wakeUp: (() => void) | undefined
  /** How the handler ended, when it has; at once for one that awaits nothing. */
  ended: End | undefined
  /** What the handler told of its progress. */
  progress: { done: number; total: number } | undefined
  /** Called when the handler ends, and when it is aborted after that. */
  onEnd: (() => void) | undefined

  /** Starts the handler. */
  constructor(
    implementation: Implementation,
    task: Pick<Claimed, 'id' | 'kind' | 'attempt' | 'calls'>,
    payload: { value: unknown; mask: Mask },
    deps: { turns: Turns; emit: (id: string, chunk: string) => void },
  ) {
    this.task = task
    this.#emit = deps.emit
    this.#mask = payload.mask
    this.#turns = deps.turns
    this.#start = deps.turns.present()
    try {
      const value = implementation.handler(payload.value, new RunContext(this))
      if (!isThenable(value)) this.#end({ type: 'returned', value })
      else {
        Promise.resolve(value).then(
          (result) => this.#returned(result),
          (error: unknown) => this.#end({ type: 'threw', error }),
        )
      }
    } catch (error) {
      this.#end({ type: 'threw', error })
    }
  }

  /** Entries that were not delivered yet, in the order of their numbers. */
  get open(): ReadonlyMap<number, Entry> {
    this.#open ??= new Map()
    return this.#open
  }

  /** Entries that were made since the last call of this, in the order of their numbers. */
  takeMade(): Entry[] {
    const made = this.#made ?? []
    this.#made = undefined
    return made
  }

  /** What was made in the turn in which the handler ended: nobody awaits it. */
  get unawaited(): Entry | undefined {
    return this.#made?.find(({ type }) => type !== 'sleep')
  }

  /** How many numbers were given. */
  get numbers(): number {
    return this.#next
  }

  /** Whether the handler has asked for its signal: then it may be doing what only the signal can stop. */
  get hasSignal(): boolean {
    return this.#controller !== undefined
  }

  /** Resolves when the handler has ended, or has come to rest: a whole turn of the event loop has passed, and something of its history is open. */
  rest(): Promise<void> | null {
    if (this.ended || this.#isAtRest) return null
    return new Promise((resolve) => {
      this.#wakeUp = resolve
      this.#check()
    })
  }

  /**
   * Completes an entry for the handler, and resolves when that has come to rest: whatever it does until then was caused by the delivery. Gives false when
   * the run has ended before.
   */
  deliver(entry: Entry): Promise<boolean> {
    return new Promise((resolve) => {
      let isDelivered = false
      this.#turns.between(
        () => {
          if (this.ended) return
          isDelivered = true
          this.#open?.delete(entry.first)
          this.#isDelivering = true
          entry.deliver()
        },
        () => {
          this.#isDelivering = false
          this.#isAtRest = this.open.size > 0
          resolve(isDelivered)
        },
      )
    })
  }

  /** Aborts the signal, and ends the run with the reason: nothing that the handler awaits of its context ever resolves. */
  abort(reason: RunAborted): void {
    if (this.#aborted) return
    this.#aborted = reason
    this.#controller?.abort(reason)
    this.#end({ type: 'threw', error: reason })
    this.onEnd?.()
  }

  get isAborted(): boolean {
    return this.#aborted !== undefined
  }

  get signal(): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#aborted && !this.#controller.signal.aborted) this.#controller.abort(this.#aborted)
    return this.#controller.signal
  }

  call<C extends Contract>(contract: C, payloads: readonly unknown[], options: CallOptions, isSingle: boolean) {
    if (!Array.isArray(payloads)) {
      const message = `ctx.map takes a list of payloads, and was given ${typeof payloads}.`
      return quiet(Promise.reject(new PermanentError(message, { code: 'bad_payloads' })))
    }
    if (payloads.length === 0) return Promise.resolve([])
    const { calls: known } = this.task
    const mask = this.#mask
    const entry = new CallEntry({ first: this.#next, contract, payloads, options, isSingle, known, mask })
    return this.#enter(entry)
  }

  sleep(ms: number): Promise<void> {
    if (typeof ms !== 'number' || !Number.isFinite(ms)) {
      const message = `ctx.sleep takes a number of milliseconds, and was given ${String(ms)}.`
      return quiet(Promise.reject(new PermanentError(message, { code: 'bad_sleep' })))
    }
    return this.#enter(new SleepEntry(this.#next, ms)) as Promise<void>
  }

  step(name: unknown, effect: unknown): Promise<unknown> {
    if (typeof name !== 'string' || name === '' || name.length > 200 || typeof effect !== 'function') {
      const message = 'ctx.step takes a name of 1 to 200 characters and a function.'
      return quiet(Promise.reject(new PermanentError(message, { code: 'bad_step' })))
    }
    return this.#enter(new StepEntry(this.#next, this.#mask.text(name), () => this.#run(effect as () => unknown)))
  }

  /** Runs the effect of a step. What it calls of the context is refused. */
  #run(effect: () => unknown): unknown {
    this.#isStarting = true
    try {
      return effect()
    } finally {
      this.#isStarting = false
    }
  }

  /** Ignored once the run is over: timers of a handler may live on for a while. */
  tellProgress(done: unknown, total: unknown): void {
    if (this.ended) return
    const isCount = (value: unknown) => typeof value === 'number' && Number.isFinite(value) && value >= 0
    if (!isCount(done) || !isCount(total)) {
      const given = [done, total].map((value) => this.#textOf(value)).join(' and ')
      throw new PermanentError(`ctx.progress takes two numbers of at least 0, and was given ${given}.`, {
        code: 'bad_progress',
      })
    }
    this.progress = { done: Number(done), total: Number(total) }
  }

  emit(chunk: unknown): void {
    if (this.ended) return
    if (typeof chunk !== 'string') {
      throw new PermanentError(`ctx.emit takes text, and was given ${typeof chunk}.`, { code: 'bad_chunk' })
    }
    limitText(chunk, () => `A chunk of ${this.task.kind} task ${this.task.id}`)
    if (this.#mask === NO_MASK) {
      this.#emit(this.task.id, chunk)
      return
    }
    this.#chunks ??= this.#mask.chunks()
    this.#send(this.#chunks.push(chunk))
  }

  #send(chunk: string): void {
    if (chunk !== '') this.#emit(this.task.id, chunk)
  }

  #textOf(value: unknown): string {
    return typeof value === 'string' ? JSON.stringify(this.#mask.clip(value, 100)) : String(value)
  }

  #enter(entry: Entry): Promise<unknown> {
    const refusal = this.#refusal(entry)
    if (refusal) return quiet(Promise.reject(refusal))
    this.#next += entry.size
    this.#open ??= new Map()
    this.#open.set(entry.first, entry)
    this.#made ??= []
    this.#made.push(entry)
    if (!this.#isDelivering) {
      this.#isAtRest = false
      this.#check()
    }
    return entry.promise
  }

  /** Why an entry may not be made now. Where its place would not be certain, the run ends. */
  #refusal(entry: Entry): Error | null {
    const { id, kind } = this.task
    if (this.ended) {
      const message = `${entry.name} was made for ${kind} task ${id} when this run was over: await all calls before the handler returns, and keep no ctx for later.`
      return new PermanentError(message, { code: 'run_over' })
    }
    if (this.#isStarting) {
      const message = `${entry.name} of ${kind} task ${id} was made inside of a ctx.step. Make it beside the step: a step is for what ctx does not know.`
      return this.#refuse(new PermanentError(message, { code: 'call_in_step' }))
    }
    if (!this.#isOutside() || this.open.size === 0) return null
    return this.#refuse(this.#outside(`${entry.name} of ${kind} task ${id} was made`))
  }

  /** Whether what happens now was caused by something that the history does not know. */
  #isOutside(): boolean {
    return this.#start.isOver && !this.#isDelivering
  }

  #outside(what: string): PermanentError {
    const [other] = this.open.values()
    const message =
      `${what} after a wait for something outside of ctx, or inside of a ctx.step, while ${other?.name} is open: ` +
      'another run would do it at another moment. Put the outside wait into ctx.step, and make calls beside steps.'
    return new PermanentError(message, { code: 'outside_wait' })
  }

  #refuse(error: PermanentError): PermanentError {
    this.#end({ type: 'threw', error })
    return error
  }

  #returned(value: unknown): void {
    const { id, kind } = this.task
    if (this.#isOutside() && this.#open && this.#open.size > 0 && !this.ended) {
      this.#refuse(this.#outside(`The handler of ${kind} task ${id} returned`))
    } else this.#end({ type: 'returned', value })
  }

  #end(end: End): void {
    if (this.ended) return
    this.ended = end
    if (this.#chunks) this.#send(this.#chunks.flush())
    this.#wakeUp?.()
    this.onEnd?.()
  }

  #check(): void {
    if (this.#checking) return
    this.#checking = true
    onNextTurn(() => {
      this.#checking = false
      if (!this.#open || this.#open.size === 0) return
      this.#isAtRest = true
      this.#wakeUp?.()
    })
  }
}

/** What a handler sees. Functions are made when they are asked for, so that they can be taken out of it. */
class RunContext implements Context {
  readonly #run: Run

  constructor(run: Run) {
    this.#run = run
  }

  get taskId(): string {
    return this.#run.task.id
  }
  get kind(): string {
    return this.#run.task.kind
  }
  get attempt(): number {
    return this.#run.task.attempt
  }
  get idempotencyKey(): string {
    return this.#run.task.id
  }
  get signal(): AbortSignal {
    return this.#run.signal
  }
  get call(): Context['call'] {
    return (contract, payload, options = {}) =>
      this.#run.call(contract, [payload], options, true) as Promise<ResultOf<typeof contract>>
  }
  get map(): Context['map'] {
    return (contract, payloads, options = {}) =>
      this.#run.call(contract, payloads, options, false) as Promise<ResultOf<typeof contract>[]>
  }
  get step(): Context['step'] {
    return <T>(name: string, effect: () => T | Promise<T>) => this.#run.step(name, effect) as Promise<T>
  }
  get sleep(): Context['sleep'] {
    return (ms) => this.#run.sleep(ms)
  }
  get progress(): Context['progress'] {
    return (done, total) => this.#run.tellProgress(done, total)
  }
  get emit(): Context['emit'] {
    return (chunk) => this.#run.emit(chunk)
  }
}

/** A promise that takes no process down when nobody looks at it. */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined)
  return promise
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof Reflect.get(value, 'then') === 'function'
}
