import type { Broker, CallOutcome, Claimed } from '#shared/broker/broker.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import type { Keyring } from '#shared/runtime/seal.ts'
import type { Slices } from '#shared/runtime/slices.ts'
import { PermanentError } from '#shared/task/errors.ts'
import { toJson } from '#shared/task/json.ts'
import type { Mask } from '#shared/task/mask.ts'
import type { Envelope, ResumePoint } from '#shared/task/task.ts'
import { encodeThrown, textOf } from '#shared/task/thrown.ts'
import type { Entry, SleepEntry, StepEntry } from './entries.ts'
import { earliestOf, History, mismatch } from './history.ts'
import { limitSize } from './limits.ts'
import { Order } from './order.ts'
import type { Run } from './run.ts'

export interface CourseDeps {
  readonly keyring: Keyring | null
  readonly clock: Clock
  readonly slices: Slices
  /** How often a run whose steps go on looks for the ends of children, in ms. */
  readonly lookMs: number
}

/** What changes with each lease of the task. */
export interface Lease {
  readonly claimed: Claimed
  /** Stores a change while the run goes on. @throws when it was refused: then the run is over. */
  commit(change: CallOutcome): Promise<void>
  /** Reads history, again until the store answers. */
  get: Broker['get']
  /** Whether the run may ask more of the store. */
  mayAsk(): boolean
  /** @throws when it may not: then the run is over. */
  mayGoOn(): void
}

/** A failure that was told to the handler, and how far it had come by then. */
interface Told {
  entry: Entry
  deliveries: number
  numbers: number
}

/**
 * The course of one run: looks up what the store knows, delivers what has completed, one at a time, stores the order before anything is done that may depend on
 * it, starts steps, and parks. A parked run that is kept in memory goes on in place when its task is claimed again: nothing but speed depends on that.
 */
export class Course {
  #lease: Lease
  readonly run: Run
  readonly history: History
  readonly order: Order
  readonly #deps: CourseDeps
  readonly #mask: Mask
  /** Entries that have completed, and whose delivery is not decided yet. */
  readonly #ready = new Set<Entry>()
  readonly #sleeps = new Set<SleepEntry>()
  #newSteps: StepEntry[] = []
  #endedSteps: StepEntry[] = []
  #running = 0
  readonly #failures: Told[] = []
  /** Failures of entries that are no tasks, which the handler was told: it may have gone on from them. */
  #unrecorded: Told[] = []
  /** Whether something was delivered that the store does not know. */
  #mustStore = false
  /**
   * Whether a delivery was decided while another entry was open whose end may yet turn out to have been earlier: its record was on its way, or is stamped by
   * another clock. Otherwise a later run decides the same by the times alone.
   */
  #isUnpinned = false
  /** Deliveries that the store has when it has accepted the park. */
  #storedWhenParked = 0
  /** Whether children may have ended since the last look. */
  #isStale = true
  #signal: () => void = () => undefined

  constructor(deps: CourseDeps, run: Run, task: { lease: Lease; envelope: Envelope; mask: Mask }) {
    const { lease, envelope, mask } = task
    const { claimed } = lease
    const { priority = 'normal', traceparent } = envelope
    this.#deps = deps
    this.#mask = mask
    this.#lease = lease
    this.run = run
    run.onEnd = () => this.#signal()
    this.order = new Order(claimed.order)
    this.history = new History({ id: claimed.id, kind: claimed.kind, priority, traceparent }, claimed, {
      ...{ keyring: deps.keyring, slices: deps.slices, now: deps.clock.now },
      get: (ids, given) => this.#lease.get(ids, given),
      mayRead: () => this.#lease.mayGoOn(),
    })
  }

  get claimed(): Claimed {
    return this.#lease.claimed
  }

  /** Whether this claim goes on where the run was parked. */
  fits({ attempt, calls, steps, order, startedAt, envelope }: Claimed): boolean {
    const { claimed, history } = this
    return (
      claimed.attempt === attempt &&
      claimed.startedAt === startedAt &&
      history.calls === calls &&
      history.steps === steps &&
      this.order.text === order &&
      claimed.envelope === envelope
    )
  }

  resume(lease: Lease): void {
    this.#lease = lease
    this.order.stored(this.#storedWhenParked)
    this.#mustStore = false
    this.#isStale = true
    if (this.history.calls >= this.run.numbers) this.#isUnpinned = false
  }

  /** Characters of what the run was given: about what it holds in memory. */
  get weight(): number {
    let chars = 2 * this.claimed.envelope.length + this.history.chars
    for (const entry of this.run.open.values()) if (entry.type === 'call') chars += entry.chars
    return chars
  }

  /** Goes on until the handler ends (null), or can go no further: then gives the outcome that parks it. */
  async advance(): Promise<CallOutcome | null> {
    const { run } = this
    for (;;) {
      const resting = run.rest()
      if (resting) await resting
      if (run.ended) return null
      // Effects that are under way or have ended are stored first, should the budget be used up.
      if (this.#running + this.#endedSteps.length > 0 && !this.#lease.mayAsk()) {
        await this.#work()
        continue
      }
      const looking = this.#look()
      if (looking) await looking
      if (run.ended) continue
      const next = this.#next()
      if (next) {
        const { numbers } = run
        if (await run.deliver(next)) this.#delivered(next, numbers)
        continue
      }
      if (this.#newSteps.length + this.#running + this.#endedSteps.length > 0) await this.#work()
      else {
        const parked = await this.#store(true)
        if (parked && !run.ended) return parked
      }
    }
  }

  /** Asks the store for what is new, and for children that may have ended; null when there is nothing to wait for. */
  #look(): Promise<void> | null {
    const { run, history } = this
    const made = run.takeMade()
    const isStale = this.#isStale
    if (made.length === 0 && !isStale) {
      this.#wakeSleeps()
      return null
    }
    this.#isStale = false
    for (const entry of made) {
      // Decided at rest, as it is then a function of the history like the entry itself.
      if (entry.type === 'call') entry.group = run.open.size === 1 ? undefined : entry.size === 1 ? 'one' : entry.first
    }
    const looked = isStale ? [...run.open.values()] : made
    const reading = history.look(looked, isStale)
    if (reading) return reading.then(() => this.#looked(looked, made))
    this.#looked(looked, made)
    return null
  }

  #looked(looked: readonly Entry[], made: readonly Entry[]): void {
    for (const entry of looked) {
      if (entry.type === 'call' && entry.failure) entry.completedAt ??= this.#deps.clock.now()
      if (entry.completedAt !== null) this.#ready.add(entry)
    }
    for (const entry of made) {
      if (entry.type === 'step' && entry.state === 'new') this.#newSteps.push(entry)
      if (entry.type !== 'sleep') continue
      this.history.begin(entry)
      this.#sleeps.add(entry)
    }
    this.#wakeSleeps()
  }

  #wakeSleeps(): void {
    if (this.#sleeps.size === 0) return
    const now = this.#deps.clock.now()
    for (const sleep of this.#sleeps) {
      if (sleep.until === null || sleep.until > now) continue
      sleep.completedAt = sleep.until
      this.#sleeps.delete(sleep)
      this.#ready.add(sleep)
    }
  }

  /**
   * What is delivered next. As far as earlier runs came, in their order; from then on what has completed, by the time it did. Null when that has not
   * completed yet.
   */
  #next(): Entry | null {
    const { run, order, history } = this
    const { written } = order
    if (written !== undefined) {
      const entry = run.open.get(written)
      if (!entry) throw mismatch(this.claimed, written, 'something to wait for', 'nothing')
      return entry.completedAt === null ? null : entry
    }
    const [smallest] = run.open.values()
    if (!smallest) return null
    if (order.isDecided || run.numbers < history.before) return smallest.completedAt === null ? null : smallest
    return this.#decide() ? this.#next() : null
  }

  /** Decides the order of all that has completed, where no earlier run has. Returns whether there is anything. */
  #decide(): boolean {
    const { run, order } = this
    const [only] = this.#ready
    if (!only) return false
    // Nearly always it is the one that is open.
    if (run.open.size === 1 && this.#ready.size === 1 && run.open.has(only.first)) {
      this.#ready.delete(only)
      order.decide(only.first, true)
      return true
    }
    const ready = [...this.#ready].filter((entry) => run.open.get(entry.first) === entry)
    this.#ready.clear()
    ready.sort((a, b) => (a.completedAt ?? 0) - (b.completedAt ?? 0) || a.first - b.first)
    const now = this.#deps.clock.now()
    const decided = new Set<number>()
    const open = run.open.keys()
    let smallest = open.next().value
    for (const { first, completedAt } of ready) {
      while (smallest !== undefined && decided.has(smallest)) smallest = open.next().value
      // A clock that runs ahead has stamped it: a later run might see another order.
      const isCertain = (completedAt ?? 0) <= now
      order.decide(first, first === smallest && isCertain)
      decided.add(first)
    }
    if (this.#mayDecideOtherwise(ready)) this.#isUnpinned = true
    if (order.isTooLong) {
      const message = `Too much of ${this.claimed.kind} task ${this.claimed.id} completes out of order for one task: give parts of it to tasks of their own, or call ctx.map, which counts as one.`
      throw new PermanentError(message, { code: 'order_too_long' })
    }
    return ready.length > 0
  }

  /** Whether a later run may find that something else was first: a child that is open now, or an own step beside a child. */
  #mayDecideOtherwise(decided: readonly Entry[]): boolean {
    const hasCall = decided.some(({ type }) => type === 'call')
    for (const { type, completedAt } of this.run.open.values()) {
      if (completedAt === null && (type === 'call' || (type === 'step' && hasCall))) return true
    }
    return false
  }

  /** The handler was given an entry, when it had made so many numbers. */
  #delivered(entry: Entry, numbers: number): void {
    const { order } = this
    order.delivered()
    if (entry.rejection) {
      const told = { entry, deliveries: order.deliveries - 1, numbers }
      this.#failures.push(told)
      if (entry.failure && !entry.isRecorded) this.#unrecorded.push(told)
    }
    if (entry.type === 'sleep' && this.history.hasRecords) this.#mustStore = true
  }

  /** Starts new steps, and waits until one ends, or something else happens. */
  async #work(): Promise<void> {
    const { run } = this
    // With an effect under way, or ended and not stored, no run is given up for want of a budget: that is stored first, and nothing new begins.
    const isIdle = this.#running + this.#endedSteps.length === 0
    const mayStart = isIdle || this.#lease.mayAsk()
    const starting = mayStart ? this.#newSteps : []
    if (starting.length > 0 && this.#isUnpinned) {
      this.order.pin()
      this.#isUnpinned = false
    }
    const isSilent = run.open.size === starting.length + this.#running || !this.#hasUnsent()
    const isRecorded = this.#unrecorded.length === 0 || this.#unrecorded.every((told) => told.numbers === run.numbers)
    const isKnown = !this.order.isUnstored && isRecorded && !this.#mustStore
    if (mayStart && (!isSilent || (starting.length > 0 && !isKnown))) await this.#store(false)
    if (run.ended) return
    if (starting.length > 0) {
      if (isIdle) this.#lease.mayGoOn()
      this.#newSteps = []
      this.#running += starting.length
      for (const step of starting) if (!run.ended) step.start((ended) => this.#stepEnded(ended))
    }
    if (this.#endedSteps.length === 0 && !run.ended) await this.#happening()
    const storing = run.ended ? null : this.#collect()
    if (storing) await storing
  }

  #hasUnsent(): boolean {
    for (const entry of this.run.open.values()) {
      if (entry.type === 'call' && !entry.isSent && !entry.failure) return true
    }
    return false
  }

  #stepEnded(step: StepEntry): void {
    this.#running--
    step.endedAt = this.#deps.clock.now()
    this.#endedSteps.push(step)
    this.#signal()
  }

  /** Resolves when a step or the handler has ended, a sleep is over, or it is time to look for the ends of children. */
  #happening(): Promise<void> {
    const happened = new Promise<void>((resolve) => {
      this.#signal = resolve
    })
    // Nearly always steps alone are awaited.
    if (this.run.open.size === this.#running || !this.#lease.mayAsk()) return happened
    return this.#firstOf(happened)
  }

  /** Also looks at what else may happen: a sleep is over, a child ends. */
  async #firstOf(happened: Promise<void>): Promise<void> {
    const { clock, lookMs } = this.#deps
    const over = new AbortController()
    const waits = [happened]
    const wakeAt = earliestOf(this.run.open)
    if (wakeAt !== null) waits.push(clock.sleep(Math.max(1, wakeAt - clock.now()), over.signal))
    const awaitsChildren = [...this.run.open.values()].some((entry) => entry.type === 'call' && entry.left > 0)
    if (awaitsChildren) {
      this.#isStale = true
      waits.push(clock.sleep(lookMs, over.signal))
    }
    await Promise.race(waits)
    over.abort()
    this.#signal = () => undefined
  }

  /** Stores the results of steps that have ended, along with the order in which they will be delivered; null when there is nothing to wait for. */
  #collect(): Promise<unknown> | null {
    const ended = this.#endedSteps
    if (ended.length === 0) return null
    this.#endedSteps = []
    const looking = this.#isStale && this.#lease.mayAsk() ? this.#look() : null
    return looking ? looking.then(() => this.#storeEnded(ended)) : this.#storeEnded(ended)
  }

  #storeEnded(ended: readonly StepEntry[]): Promise<unknown> | null {
    const isStoring = this.#keep(ended)
    this.#wakeSleeps()
    if (!isStoring || this.run.ended) return null
    if (!this.order.isDecided && this.run.numbers >= this.history.before) this.#decide()
    return this.#store(false)
  }

  /** Completes steps, and keeps their results for the next change. Returns whether there are any. */
  #keep(ended: readonly StepEntry[]): boolean {
    let hasResults = false
    for (const step of ended) {
      this.#encode(step)
      step.completedAt = step.endedAt
      this.#ready.add(step)
      if (step.failure) continue
      // Alone it needs no time: nothing else can have completed before it.
      this.history.keep(step, this.run.open.size > 1 ? step.completedAt : null)
      hasResults = true
    }
    return hasResults
  }

  /**
   * Of a handler that has failed and will be tried again: waits for effects that are under way and stores their results, so that the next attempt does not begin
   * them beside these. An abort ends the wait.
   */
  async finish(): Promise<void> {
    const { run, history } = this
    while (this.#running + this.#endedSteps.length > 0 && !run.isAborted) {
      if (this.#endedSteps.length === 0) {
        await new Promise<void>((resolve) => {
          this.#signal = resolve
        })
      }
      this.#keep(this.#endedSteps.splice(0))
      if (history.hasRecords) await this.#store(false, new Map())
    }
  }

  /** What the effect of a step gave, as its history will give it. */
  #encode(step: StepEntry): void {
    const { result } = step
    const what = () => `The result of ${step.name} of ${this.claimed.kind} task ${this.claimed.id}`
    try {
      if (!result || 'thrown' in result) throw result?.thrown
      const json = result.value === undefined ? 'null' : toJson(result.value, what)
      limitSize(json, what)
      // What the handler is given, too: in each run the same.
      step.json = this.#mask.json(json)
    } catch (error) {
      const isOurs = result !== null && 'value' in result && !(error instanceof PermanentError)
      const told = isOurs ? new PermanentError(textOf(error), { code: 'bad_step_result' }) : error
      step.failure = encodeThrown(told, this.#mask)
    }
  }

  /** Stores what the store does not know of this run, in several changes when it is much. The last one is given back if it parks. */
  async #store(park: boolean, open: ReadonlyMap<number, Entry> = this.run.open): Promise<CallOutcome | null> {
    const { run, history, order } = this
    if (this.#unrecorded.length > 0) this.#keepFailures()
    const size = order.size
    let last = history.change(open, order, park)
    // Nearly always one change is enough.
    if (!last) {
      for await (const change of history.parts(open, order, park)) {
        if (last) {
          await this.#lease.commit(last)
          if (run.ended) return null
          this.#lease.mayGoOn()
        }
        last = change
      }
    }
    if (last?.park) {
      this.#storedWhenParked = size
      return last
    }
    if (last) await this.#lease.commit(last)
    order.stored(size)
    this.#mustStore = false
    // What was made since is in the store by its number, and so is the course that led to it.
    if (history.calls >= run.numbers) this.#isUnpinned = false
    return null
  }

  /** Keeps failures that the handler went on from. One after which nothing was made has no consequences yet: should the run be lost, the step may be tried again. */
  #keepFailures(): void {
    for (const { entry } of this.#unrecorded.filter((told) => told.numbers < this.run.numbers)) {
      if (entry.type === 'sleep') continue
      this.history.keep(entry, entry.completedAt)
      entry.isRecorded = true
    }
    this.#unrecorded = this.#unrecorded.filter(({ entry }) => !entry.isRecorded)
  }

  /** Whether an error comes from a failure that is history: then another attempt would meet it again. */
  isHistory(error: unknown): boolean {
    const causes = causesOf(error)
    return this.#failures.some(({ entry }) => entry.isRecorded && causes.has(entry.rejection))
  }

  /**
   * Where a retry goes on from: from before the first failure that ended the run, or, without an error of the handler's, from all of the history. Undefined
   * where this run cannot tell.
   */
  resumePoint(error: unknown): ResumePoint | undefined {
    // One that ended before it came as far as an earlier run does not know what that was told.
    if (this.run.numbers < this.history.before) return undefined
    const causes = causesOf(error)
    // A failure after which nothing was made is not one that the handler went on from, whatever it then throws.
    const isEnd = ({ entry, numbers }: Told) => causes.has(entry.rejection) || numbers === this.run.numbers
    const first = error === undefined ? undefined : this.#failures.find(isEnd)
    const { deliveries, numbers } = first ?? { deliveries: this.order.deliveries, numbers: this.history.calls }
    const order = first ? this.order.before(deliveries) : this.order.text
    const kept = this.#failures.filter((told) => told.deliveries < deliveries)
    return {
      calls: numbers,
      ...(order === '' ? {} : { order }),
      keep: kept.map(({ entry }) => [entry.first, entry.first + entry.size - 1]),
    }
  }
}

/** An error with all that it was made of. */
function causesOf(error: unknown): Set<unknown> {
  const causes = new Set<unknown>()
  const open = [error]
  while (open.length > 0 && causes.size < 1_000) {
    const one = open.pop()
    if (causes.has(one)) continue
    causes.add(one)
    if (!(one instanceof Error)) continue
    if (one.cause !== undefined) open.push(one.cause)
    if (one instanceof AggregateError) open.push(...one.errors)
  }
  return causes
}
