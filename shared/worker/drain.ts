import type { Broker, Claim, Claimed, ClaimRequest, Outcome } from '#shared/broker/broker.ts'
import { type Clock, nextTurn } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import type { Slices } from '#shared/runtime/slices.ts'
import { RunAborted, StoreUnavailable } from '#shared/task/errors.ts'
import { Claimer } from './claimer.ts'
import type { Execution, Executor } from './execute.ts'
import { type Held, Waiting } from './held.ts'
import { keepLeases, keepTimeLimits, messageOf } from './housekeeping.ts'
import type { Outage } from './outage.ts'
import { charsOf, createSettler, MAX_SETTLE_CHARS, type Settler } from './settler.ts'
import type { Turns } from './turns.ts'

/** A part of a lease: a worker holds no more tasks that have not begun than it can run in that time, and leaves the others to other workers. */
const WAITING_SHARE = 0.1

/** Characters of envelopes that a worker holds before it claims no more: a run needs a few times as much memory. */
const MAX_HELD_CHARS = 8_000_000

export interface DrainDeps {
  readonly broker: Broker
  readonly kinds: readonly string[]
  readonly concurrency: number
  readonly leaseMs: number
  readonly pollMs: number
  readonly graceMs: number
  readonly clock: Clock
  readonly random: () => number
  readonly log: Log
  readonly slices: Slices
  readonly turns: Turns
  readonly outage: Outage
  readonly executor: Executor
}

export interface DrainLimits {
  /** Claims no more after so many tasks. */
  readonly maxTasks?: number
  /**
   * Claims no more, and lets no run ask more of the store, when this gives false: for a budget of requests. It is given the number of runs under way, each of which may
   * need a call of its own to end.
   */
  readonly mayGoOn?: (runs: number) => boolean
}

interface Ended {
  held: Held
  /** Null: there is nothing to report. */
  outcome: Outcome | null
}

/**
 * One time that a worker works: the tasks that it holds, from their claim until the store has accepted how they ended. One loop starts what was claimed and
 * claims more. Outcomes are settled beside it, and bring the next tasks in the same call.
 */
export class Drain {
  readonly #deps: DrainDeps
  readonly #limits: DrainLimits
  readonly #claimer: Claimer
  readonly #settle: Settler
  /** Tasks that are held, but for those that arrived in this very turn. */
  readonly #held = new Map<string, Held>()
  #heldChars = 0
  /** Claimed, and not looked at yet. */
  #arrived: Claimed[] = []
  /** Those that wait to be run, while handlers that do not await anything have held the event loop for long enough. */
  #waiting: Waiting[] = []
  #running = 0
  /** Those of them that wait for the store. */
  #committing = 0
  #taken = 0
  readonly #queued = new Set<string>()
  /** About how long a task holds the event loop, in ms. */
  #msPerTask = 0
  #isClaiming = false
  #isStopping = false
  /** Aborts when the grace of a stop is over: nothing is waited for any more. */
  readonly #graceOver = new AbortController()
  /** An error that nobody foresaw: it ends the worker. */
  #fatal: { error: unknown } | null = null
  #changed = Promise.withResolvers<void>()
  /** Wakes the loop at a time. */
  #alarm: { at: number; off: AbortController } | null = null

  constructor(deps: DrainDeps, limits: DrainLimits) {
    this.#deps = deps
    this.#limits = limits
    this.#claimer = new Claimer({ ...deps, onTasks: (tasks) => this.#arrive(tasks) })
    this.#settle = createSettler({
      outage: deps.outage,
      call: (outcomes) => this.#settleCall(outcomes),
      isCurrent: ({ id, token }) => this.#held.get(id)?.claimed.token === token,
      weigh: (outcome) => this.#weigh(outcome),
      gather: () => this.#gather(),
      signal: this.#graceOver.signal,
    })
  }

  /** How many tasks were claimed. */
  get taken(): number {
    return this.#taken
  }

  /** Whether more is likely to be queued. */
  get more(): boolean {
    return this.#claimer.more
  }

  /** Kinds of which tasks were queued by what was run. */
  get queued(): string[] {
    return [...this.#queued]
  }

  /** Whether there is anything to do, or to wait for. */
  get hasWork(): boolean {
    const { maxTasks = Infinity } = this.#limits
    if (!this.mayGoOn()) return false
    return this.#isHolding || (this.#claimer.more && this.#taken < maxTasks)
  }

  get #isHolding(): boolean {
    return this.#held.size > 0 || this.#arrived.length > 0 || this.#isClaiming
  }

  mayGoOn(): boolean {
    return this.#limits.mayGoOn?.(this.#running) ?? true
  }

  /** Something was queued (`at` null), or will be due. */
  wake(at: number | null): void {
    this.#claimer.wake(at)
    this.#change()
  }

  /** Makes a call for a run, again until the store answers. */
  insist<T>(call: () => Promise<T>): Promise<T> {
    return this.#deps.outage.insist(call, this.#graceOver.signal)
  }

  /** Settles an outcome of a run that goes on; false when it was refused. */
  async commit(outcome: Outcome): Promise<boolean> {
    this.#committing++
    try {
      return (await this.#settle([outcome]))[0] === true
    } finally {
      this.#committing--
    }
  }

  /** Claims and runs while `goesOn`; then lets running tasks end, and gives back what does not within the grace. */
  async run(signal: AbortSignal, goesOn: () => boolean): Promise<void> {
    const { clock, graceMs, leaseMs, executor } = this.#deps
    const helpers = new AbortController()
    const ended = new AbortController()
    const keeping = { ...this.#deps, held: this.#held, tidy: () => executor.tidy() }
    const background = [
      keepLeases(keeping, leaseMs, helpers.signal).catch((error) => this.fail(error)),
      keepTimeLimits(keeping, helpers.signal).catch((error) => this.fail(error)),
    ]
    /** Claims no more; what still runs when the grace is over is given back. */
    const stop = () => {
      if (this.#isStopping) return
      this.#isStopping = true
      const giveBack = () => (ended.signal.aborted ? undefined : this.#giveBack())
      background.push(clock.sleep(graceMs, ended.signal).then(giveBack))
      this.#change()
    }
    signal.addEventListener('abort', stop, { once: true })
    try {
      while (!signal.aborted && goesOn() && !this.#fatal) await this.#next()
      stop()
      while (this.#isHolding && !this.#fatal) await this.#next()
    } catch (error) {
      this.fail(error)
    } finally {
      signal.removeEventListener('abort', stop)
      ended.abort()
      helpers.abort()
      this.#alarm?.off.abort()
      await Promise.all(background)
    }
    if (this.#fatal) throw this.#fatal.error
  }

  /** An error that nobody foresaw: nothing more is done, and what is held goes to others when its leases end. */
  fail(error: unknown): void {
    this.#fatal ??= { error }
    this.#graceOver.abort()
    this.#change()
  }

  /** Starts what was claimed, claims when it is time, and waits until something changes. */
  async #next(): Promise<void> {
    if (this.#waiting.length > 0) this.#releaseExcess()
    if (this.#waiting.length > 0) return this.#deps.turns.start(() => this.#startWaiting())
    if (this.#arrived.length > 0) return this.#deps.turns.start(() => this.#startArrived())
    if (!this.#isStopping && !this.#isClaiming && this.#room() > 0) {
      const now = this.#deps.clock.now()
      const claimAt = this.#claimer.claimAt(now)
      if (now >= claimAt) return this.#claim()
      this.#setAlarm(claimAt, now)
    }
    await this.#changed.promise
    // What ends in this turn is claimed for together.
    if (this.#arrived.length === 0) await this.#gather()
  }

  #setAlarm(at: number, now: number): void {
    if (this.#alarm && this.#alarm.at <= at) return
    this.#alarm?.off.abort()
    const off = new AbortController()
    this.#alarm = { at, off }
    void this.#deps.clock.sleep(at - now, off.signal).then(() => {
      if (off.signal.aborted) return
      this.#alarm = null
      this.#change()
    })
  }

  #change(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers()
  }

  /** While others run, what ends in one turn of the event loop goes together; a lone task waits for nothing. */
  #gather(): Promise<void> {
    return this.#running > this.#committing ? nextTurn() : Promise.resolve()
  }

  #keep(one: Held): void {
    const { id, envelope } = one.claimed
    this.#letGo(this.#held.get(id))
    this.#held.set(id, one)
    this.#heldChars += envelope.length
  }

  /** Of a task that was claimed anew meanwhile, the newer run is kept. */
  #letGo(one: Held | undefined): void {
    if (one === undefined || this.#held.get(one.claimed.id) !== one) return
    this.#held.delete(one.claimed.id)
    this.#heldChars -= one.claimed.envelope.length
  }

  /** Characters that a call moves for an outcome: what is sent, or the envelope, which is written anew with what does not end. */
  #weigh(outcome: Outcome): number {
    return Math.max(charsOf(outcome), this.#held.get(outcome.id)?.claimed.envelope.length ?? 0)
  }

  /** Slots that are free. Tasks that wait to be settled hold none, but not without bound. */
  #room(): number {
    if (this.#heldChars > MAX_HELD_CHARS) return 0
    const { concurrency } = this.#deps
    const { maxTasks = Infinity } = this.#limits
    const waiting = this.#waiting.length + this.#arrived.length
    const free = Math.min(concurrency - this.#running - waiting, this.#mayWait() - waiting)
    return Math.min(free, 2 * concurrency - this.#held.size, maxTasks - this.#taken) - this.#claimer.asked
  }

  /** How many tasks may wait to be run: as many as a part of a lease is enough for. */
  #mayWait(): number {
    return Math.max(1, Math.floor((this.#deps.leaseMs * WAITING_SHARE) / this.#msPerTask))
  }

  /** At most half of the slots in one call, so that one half runs while the other is settled. */
  #request(): ClaimRequest | undefined {
    const limit = Math.min(this.#room(), Math.ceil(this.#deps.concurrency / 2))
    return limit > 0 && !this.#isStopping && this.mayGoOn() ? this.#claimer.request(limit) : undefined
  }

  /** Begins to claim. */
  #claim(): void {
    const request = this.#request()
    if (!request) return
    this.#isClaiming = true
    const call = () => this.#deps.broker.claim(request)
    this.#claimer
      .asking(request, call, (claim: Claim) => claim)
      .then(
        () => this.#claimer.answered(),
        (error: unknown) => {
          if (error instanceof StoreUnavailable) this.#claimer.unanswered(error)
          else this.fail(error)
        },
      )
      .finally(() => {
        this.#isClaiming = false
        this.#change()
      })
  }

  #arrive(tasks: readonly Claimed[]): void {
    this.#taken += tasks.length
    for (const task of tasks) this.#arrived.push(task)
    this.#change()
  }

  /** Starts what has arrived for a slice of time; what is left waits for the next turn of the event loop. */
  #startArrived(): void {
    const tasks = this.#arrived
    this.#arrived = []
    const mayStart = !this.#graceOver.signal.aborted
    const started = mayStart ? this.#startSome(tasks, (task) => task) : 0
    for (let i = started; i < tasks.length; i++) {
      const task = tasks[i]
      if (task) this.#wait(task)
    }
  }

  #wait(task: Claimed): void {
    const one = new Waiting(task)
    if (this.#graceOver.signal.aborted) one.abort(stopping(task))
    this.#keep(one)
    this.#waiting.push(one)
  }

  /** Gives back what would wait too long, for others to run. */
  #releaseExcess(): void {
    const excess = this.#waiting.splice(this.#mayWait())
    this.#taken -= excess.length
    if (excess.length > 0) this.#release(excess)
  }

  /** Starts what waits for a slice of time. */
  #startWaiting(): void {
    for (const task of this.#arrived.splice(0)) this.#wait(task)
    const gone = this.#waiting.filter(({ aborted }) => aborted !== null)
    const some = gone.length > 0 ? this.#waiting.filter(({ aborted }) => aborted === null) : this.#waiting
    this.#waiting = []
    if (gone.length > 0) this.#release(gone)
    const started = this.#startSome(some, ({ claimed }) => claimed)
    this.#waiting.unshift(...some.slice(started))
  }

  #release(waiting: readonly Waiting[]): void {
    void this.#report(waiting.map((held) => ({ held, outcome: held.release() })))
  }

  /** Starts tasks until a slice is over, and says how many. Those that end at once are reported together, up to the size of a call. */
  #startSome<T>(tasks: readonly T[], claimedOf: (task: T) => Claimed): number {
    const { executor, slices } = this.#deps
    let ended: Ended[] = []
    let chars = 0
    let started = 0
    const began = performance.now()
    slices.isOver()
    for (const one of tasks) {
      if (this.#fatal) break
      started++
      const execution = executor.execute(claimedOf(one), this)
      this.#keep(execution)
      if (execution.outcome instanceof Promise) void this.#follow(execution, execution.outcome)
      else {
        ended.push({ held: execution, outcome: execution.outcome })
        chars += execution.outcome ? this.#weigh(execution.outcome) : 0
        if (chars > MAX_SETTLE_CHARS) {
          void this.#report(ended)
          ended = []
          chars = 0
        }
      }
      if (slices.isOver()) break
    }
    if (ended.length > 0) void this.#report(ended)
    // What was learned last counts for half.
    if (started > 0) this.#msPerTask = (this.#msPerTask + (performance.now() - began) / started) / 2
    return started
  }

  async #follow(execution: Execution, ending: Promise<Outcome | null>): Promise<void> {
    this.#running++
    const outcome = await ending.catch((error: unknown) => {
      if (!(error instanceof StoreUnavailable)) this.fail(error)
      const { id: task_id, kind } = execution.claimed
      const what = 'A task could not be ended; it runs again when its lease ends'
      this.#deps.log.error(what, { task_id, kind, reason: messageOf(error) })
      return null
    })
    this.#running--
    this.#change()
    await this.#report([{ held: execution, outcome }])
  }

  /** Settles what ended, and gives up what is held of it. */
  async #report(ended: readonly Ended[]): Promise<void> {
    const { executor, log } = this.#deps
    const told = ended.filter((one): one is Ended & { outcome: Outcome } => one.outcome !== null)
    const outcomes = told.map(({ outcome }) => outcome)
    try {
      const accepted = await this.#settle(outcomes)
      told.forEach(({ outcome, held }, i) => {
        if (outcome.type === 'call') executor.parked(outcome.id, accepted[i] === true)
        if (outcome.type === 'retry' && accepted[i]) this.#tellFailure(held, outcome.at)
        if (!accepted[i]) log.info('A late result was refused', { task_id: outcome.id, kind: outcome.kind })
      })
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) {
        this.fail(error)
        return
      }
      const task_ids = outcomes.map(({ id }) => id)
      const what = 'Results could not be stored; their tasks run again when the leases end'
      log.error(what, { task_ids, reason: messageOf(error) })
    }
    // The settle may have brought one of these very tasks again.
    for (const { held } of ended) this.#letGo(held)
    this.#change()
  }

  /** Says why an attempt failed that another one follows: until the last has failed, nobody else does. */
  #tellFailure({ claimed: { id: task_id, kind }, failure }: Held, next: number): void {
    if (failure === null) return
    const { attempt, type, message: error, status_code } = failure
    const next_at = new Date(next).toISOString()
    const what = 'An attempt failed; the task is tried again'
    this.#deps.log.warn(what, { task_id, kind, attempt, type, error, status_code, next_at })
  }

  /** Settles in one call, which brings the next tasks. */
  async #settleCall(outcomes: readonly Outcome[]): Promise<readonly string[]> {
    if (this.#fatal) throw this.#fatal.error
    // What calls children, or ends one, queues tasks in this very call.
    const queues: string[] = []
    for (const outcome of outcomes) addKindsQueuedBy(outcome, queues)
    if (queues.length > 0) this.#claimer.expectMore()
    const request = this.#claimer.more ? this.#request() : undefined
    const call = () => this.#deps.broker.settle(outcomes, request)
    const { refused } = await this.#claimer
      .asking(request, call, ({ next }) => next)
      .finally(() => {
        if (request) this.#change()
      })
    if (queues.length > 0 && !request) this.wake(null)
    for (const kind of queues) this.#queued.add(kind)
    return refused
  }

  #giveBack(): void {
    this.#graceOver.abort()
    for (const held of this.#held.values()) held.abort(stopping(held.claimed))
    this.#change()
  }
}

function stopping({ id }: Claimed): RunAborted {
  return new RunAborted('stopping', `The worker of task ${id} stops.`)
}

/** Adds the kinds of which an outcome queues tasks: of children that it calls, of a parent or a task that may go on, and of one that is given back. */
function addKindsQueuedBy(outcome: Outcome, kinds: string[]): void {
  if (outcome.type === 'call') {
    kinds.push(outcome.kind)
    for (const { kind } of outcome.children) if (!kinds.includes(kind)) kinds.push(kind)
  } else if (outcome.type === 'release') {
    if (!kinds.includes(outcome.kind)) kinds.push(outcome.kind)
  } else if (outcome.type === 'end' && outcome.parent && !kinds.includes(outcome.parent.kind)) {
    kinds.push(outcome.parent.kind)
  }
}
