import type { Broker, Claim, Claimed, ClaimRequest, Outcome } from '#shared/broker/broker.ts'
import { type Clock, nextTurn, systemClock } from '#shared/runtime/clock.ts'
import { createGroup } from '#shared/runtime/group.ts'
import type { Log } from '#shared/runtime/log.ts'
import type { Keyring } from '#shared/runtime/seal.ts'
import { createSlices } from '#shared/runtime/slices.ts'
import { RunAborted, StoreUnavailable } from '#shared/task/errors.ts'
import { createExecutor, type Execution } from './execute.ts'
import { keepLeases, keepSwept, keepTimeLimits, messageOf } from './housekeeping.ts'
import type { Implementation } from './implement.ts'

export interface WorkerOptions {
  readonly broker: Broker
  /** The kinds that this worker runs. */
  readonly implementations: readonly Implementation[]
  readonly keyring: Keyring | null
  readonly log: Log
  /** Tasks run at once. Default: the largest of the kinds'. */
  readonly concurrency?: number | undefined
  /** Milliseconds after which a task of a worker that died is taken by another. Leases are extended at a third of it. Default 30,000. */
  readonly leaseMs?: number | undefined
  /** An idle worker looks for missed wake-ups, expired leases and due delays so often, in ms. Default 1,000. */
  readonly pollMs?: number | undefined
  /** Looks for expired results and foreign ones so often, in ms. Default 1,000. */
  readonly sweepMs?: number | undefined
  /** A stopping worker lets running tasks go on for so long, in ms, then gives them back. Default 10,000. */
  readonly graceMs?: number | undefined
  readonly clock?: Clock
  readonly random?: () => number
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

export interface DrainReport {
  /** Runs that were started. */
  readonly ran: number
  /** Whether more is likely to be queued of the kinds of this worker. */
  readonly more: boolean
  /** Kinds of which tasks were queued by what was run: children that were called, and parents that may go on. */
  readonly queued: readonly string[]
}

export interface Worker {
  /** Runs tasks until no more are due, a limit is reached or the signal aborts: then what still runs has the grace to end. Nothing is held when it resolves. */
  drain(limits?: DrainLimits, signal?: AbortSignal): Promise<DrainReport>
  /** Drains and waits for more, until the signal aborts; then stops gracefully: claims no more, lets running tasks end, gives the rest back. */
  loop(signal: AbortSignal): Promise<void>
}

/** A part of a lease: a worker holds no more tasks that have not begun than it can run in that time, and leaves the others to other workers. */
const WAITING_SHARE = 0.1

interface Ended {
  execution: Held
  /** Null: there is nothing to report. */
  outcome: Outcome | null
}

/** Outcomes, and characters in them, that are settled in one call. */
const MAX_SETTLE = 1_000
const MAX_SETTLE_CHARS = 500_000
const SECOND_SETTLE_AT = 100

/** The longest wait for a store that does not answer. */
const MAX_PAUSE_MS = 5_000

/** A worker for some kinds. Outcomes are settled together, and one settle brings the next tasks. */
export function createWorker(options: WorkerOptions): Worker {
  const { broker, log, keyring, clock = systemClock, random = Math.random } = options
  const { leaseMs = 30_000, pollMs = 1_000, sweepMs = 1_000, graceMs = 10_000 } = options
  const kinds = options.implementations.map(({ contract }) => contract.kind)
  const concurrency =
    options.concurrency ?? Math.max(...options.implementations.map(({ contract }) => contract.concurrency))

  const slices = createSlices()
  /** Tasks that are held: running, or ended and not settled yet, or waiting to be run. */
  const held = new Map<string, Held>()
  /** Those that wait to be run, while handlers that do not await anything have held the event loop for long enough. */
  let waiting: Waiting[] = []
  /** About how long a task holds the event loop, in ms. */
  let msPerTask = 0
  /** An error that nobody foresaw: it ends the worker. */
  let fatal: { error: unknown } | null = null
  const failed = Promise.withResolvers<void>()
  let running = 0
  /** Those of them that wait for the store. */
  let committing = 0
  let taken = 0
  let limits: DrainLimits = {}
  const queued = new Set<string>()
  /** Slots that claims under way have asked for. */
  let asked = 0
  /** Whether more is likely to be queued than was claimed. */
  let more = false
  let wakes = 0
  let claims = 0
  /** When to look for what no wake-up told, and when something is known to be due. */
  let nextLook = 0
  let dueAt = 0
  /** No claims before, since the store did not answer. */
  let pausedUntil = 0
  let turn = 0
  let storeAway = false
  /** Claims in a row that were not answered. */
  let failedClaims = 0
  let stopping = true
  /** Aborts when the grace of a stop is over: nothing is waited for any more. */
  let graceOver = new AbortController()
  let changed = Promise.withResolvers<void>()

  const executor = createExecutor({
    ...{ keyring, clock, random, slices, lookMs: pollMs },
    broker: { ...broker, get: (ids, given) => insist(() => broker.get(ids, given)) },
    implementations: new Map(
      options.implementations.map((implementation) => [implementation.contract.kind, implementation]),
    ),
    async commit(outcome) {
      committing++
      try {
        return (await settle([outcome]))[0] === true
      } finally {
        committing--
      }
    },
    mayGoOn,
  })

  const keeping = { broker, clock, log, held, tidy: () => executor.tidy() }

  const settleTogether = createGroup(settleParts, {
    ...{ maxBatch: MAX_SETTLE, weigh: charsOf, maxWeight: MAX_SETTLE_CHARS, gather, secondAt: SECOND_SETTLE_AT },
  })

  /**
   * Settles in one call, or when the store will not do that, in two of halves: what it does not take (children, when it is full) must not hold up the
   * rest. Gives for each whether it was accepted, or why the store did not say.
   */
  async function settleParts(outcomes: readonly Outcome[]): Promise<(boolean | StoreUnavailable)[]> {
    try {
      return await settleCall(outcomes)
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error
      if (!error.refused || outcomes.length === 1) return outcomes.map(() => error)
      const middle = outcomes.length >> 1
      return [...(await settleParts(outcomes.slice(0, middle))), ...(await settleParts(outcomes.slice(middle)))]
    }
  }

  async function settleCall(all: readonly Outcome[]): Promise<boolean[]> {
    if (fatal) throw fatal.error
    // A task that was claimed anew meanwhile, by this very worker, is its newer run's: a call takes one outcome of each.
    const isCurrent = ({ id, token }: Outcome) => held.get(id)?.claimed.token === token
    const outcomes = all.every(isCurrent) ? all : all.filter(isCurrent)
    if (outcomes.length === 0) return all.map(() => false)
    // What calls children, or ends one, queues tasks in this very call.
    const queues: string[] = []
    for (const outcome of outcomes) addKindsQueuedBy(outcome, queues)
    if (queues.length > 0) more = true
    const request = more ? claimRequest() : undefined
    const { refused } = await claiming(
      request,
      () => broker.settle(outcomes, request),
      (settled) => settled.next,
    )
    if (queues.length > 0 && !request) wake(null)
    for (const kind of queues) queued.add(kind)
    const lost = new Set(refused)
    const sent = outcomes === all ? null : new Set(outcomes)
    return all.map((outcome) => !lost.has(outcome.id) && (sent?.has(outcome) ?? true))
  }

  /** Settles until the store has said of each outcome whether it is accepted. */
  function settle(outcomes: readonly Outcome[]): Promise<boolean[]> {
    const known = new Map<Outcome, boolean>()
    let open = outcomes
    return insist(async () => {
      const answers = await settleTogether(open)
      const failure = answers.find((answer) => typeof answer !== 'boolean')
      // Nearly always all is known at once.
      if (failure === undefined && known.size === 0) return answers as boolean[]
      for (const [i, outcome] of open.entries()) {
        const answer = answers[i]
        if (typeof answer === 'boolean') known.set(outcome, answer)
      }
      open = open.filter((outcome) => !known.has(outcome))
      if (failure) throw failure
      return outcomes.map((outcome) => known.get(outcome) === true)
    })
  }

  /** Makes a call again until the store is back: a result in hand is never thrown away. Gives up only when a stop's grace is over. */
  async function insist<T>(work: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      try {
        return answered(await work())
      } catch (error) {
        if (!(error instanceof StoreUnavailable) || graceOver.signal.aborted) throw error
        await clock.sleep(unanswered(error, tries), graceOver.signal)
      }
    }
  }

  function answered<T>(value: T): T {
    if (storeAway) log.info('The store answers again')
    storeAway = false
    return value
  }

  /** Says how long to wait for a store that has not answered so many times, in ms. */
  function unanswered(error: StoreUnavailable, times: number): number {
    if (!storeAway) log.warn('The store does not answer; trying again', { reason: error.message })
    storeAway = true
    return Math.min(MAX_PAUSE_MS, 100 * 2 ** Math.min(times, 10)) * (0.5 + random() / 2)
  }

  function mayGoOn(): boolean {
    return limits.mayGoOn?.(running) ?? true
  }

  /** While others run, what ends in one turn of the event loop goes together; a lone task waits for nothing. */
  function gather(): Promise<void> {
    return running > committing ? nextTurn() : Promise.resolve()
  }

  function signalChange(): void {
    changed.resolve()
    changed = Promise.withResolvers()
  }

  /** Something was queued, or will be due. */
  function wake(at: number | null): void {
    wakes++
    if (at === null) more = true
    else dueAt = Math.min(dueAt, at)
    signalChange()
  }

  /** Slots that are free. Tasks that wait to be settled hold none, but not without bound. */
  function room(): number {
    const free = Math.min(concurrency - running - waiting.length, mayWait() - waiting.length)
    return Math.min(free, 2 * concurrency - held.size, (limits.maxTasks ?? Infinity) - taken) - asked
  }

  /** How many tasks may wait to be run: as many as a part of a lease is enough for. */
  function mayWait(): number {
    return Math.max(1, Math.floor((leaseMs * WAITING_SHARE) / msPerTask))
  }

  /** The time. When a clock was put back, what was about to be done does not wait until the old time comes again. */
  function timeNow(): number {
    const now = clock.now()
    nextLook = Math.min(nextLook, now + pollMs)
    pausedUntil = Math.min(pausedUntil, now + MAX_PAUSE_MS)
    return now
  }

  /** At most half of the slots in one call, so that one half runs while the other is settled. */
  function claimRequest(): ClaimRequest | undefined {
    const limit = Math.min(room(), Math.ceil(concurrency / 2))
    if (limit <= 0 || stopping || !mayGoOn()) return undefined
    const now = timeNow()
    const takeBack = now >= Math.min(nextLook, dueAt)
    if (takeBack) {
      nextLook = now + pollMs
      dueAt = Number.POSITIVE_INFINITY
    }
    turn = (turn + 1) % kinds.length
    // Each kind has its turn to be first among those of one priority.
    return { kinds: [...kinds.slice(turn), ...kinds.slice(0, turn)], limit, leaseMs, takeBack }
  }

  /** Makes a call that may bring tasks, and starts them. */
  async function claiming<T>(
    request: ClaimRequest | undefined,
    work: () => Promise<T>,
    claimOf: (answer: T) => Claim | null,
  ): Promise<T> {
    const wakesBefore = wakes
    const mine = request ? ++claims : claims
    const limit = request?.limit ?? 0
    asked += limit
    try {
      const answer = await work()
      const claim = claimOf(answer)
      if (!claim) return answer
      const dueNow = claim.nextDueAt !== null && claim.nextDueAt <= clock.now()
      // An answer that is older than a wake-up or than another claim says nothing of what is queued now.
      if (dueNow || claim.tasks.length >= limit) more = true
      else if (wakes === wakesBefore && claims === mine) more = false
      if (claim.nextDueAt !== null) dueAt = Math.min(dueAt, claim.nextDueAt)
      start(claim.tasks)
      return answer
    } catch (error) {
      // The slots are free again.
      signalChange()
      throw error
    } finally {
      asked -= limit
    }
  }

  async function claim(): Promise<void> {
    const request = claimRequest()
    if (!request) return
    try {
      await claiming(
        request,
        () => broker.claim(request),
        (claim) => claim,
      )
      failedClaims = 0
      answered(null)
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error
      more = true
      pausedUntil = clock.now() + unanswered(error, ++failedClaims)
    }
  }

  /** Starts claimed tasks for a slice of time; those that are left wait for the next turn of the event loop. */
  function start(tasks: readonly Claimed[]): void {
    if (fatal) return
    taken += tasks.length
    const isBusy = waiting.length > 0
    const started = isBusy ? 0 : startSome(tasks, (task) => task)
    if (started === tasks.length) return
    for (const task of tasks.slice(started)) {
      const one = new Waiting(task)
      held.set(task.id, one)
      waiting.push(one)
    }
    if (!isBusy) startWaiting().catch(fail)
  }

  /** Starts what waits, a slice at a time. What would wait for too long is given back for others to run. */
  async function startWaiting(): Promise<void> {
    while (waiting.length > 0 && !fatal) {
      const excess = waiting.splice(mayWait()).map((execution): Ended => ({ execution, outcome: execution.release() }))
      if (excess.length > 0) {
        taken -= excess.length
        void report(excess)
      }
      await slices.turn()
      const gone = waiting.filter(({ aborted }) => aborted !== null)
      if (gone.length > 0) {
        waiting = waiting.filter(({ aborted }) => aborted === null)
        void report(gone.map((execution) => ({ execution, outcome: execution.release() })))
      }
      const some = waiting
      waiting = []
      const started = startSome(some, ({ claimed }) => claimed)
      waiting.unshift(...some.slice(started))
    }
  }

  /** Starts tasks until a slice is over, and says how many. Those that end at once are reported together, up to the size of a call. */
  function startSome<T>(tasks: readonly T[], claimedOf: (task: T) => Claimed): number {
    let ended: Ended[] = []
    let chars = 0
    let started = 0
    const began = performance.now()
    slices.isOver()
    for (const one of tasks) {
      const task = claimedOf(one)
      started++
      const execution = executor.execute(task)
      held.set(task.id, execution)
      if (execution.outcome instanceof Promise) void follow(execution, execution.outcome)
      else {
        ended.push({ execution, outcome: execution.outcome })
        chars += execution.outcome ? charsOf(execution.outcome) : 0
        if (chars > MAX_SETTLE_CHARS) {
          void report(ended)
          ended = []
          chars = 0
        }
      }
      if (slices.isOver()) break
    }
    if (ended.length > 0) void report(ended)
    // What was learned last counts for half.
    if (started > 0) msPerTask = (msPerTask + (performance.now() - began) / started) / 2
    return started
  }

  /** An error that nobody foresaw: nothing more is done, and what is held goes to others when its leases end. */
  function fail(error: unknown): void {
    fatal ??= { error }
    failed.resolve()
    stopping = true
    graceOver.abort()
    signalChange()
  }

  async function follow(execution: Execution, ending: Promise<Outcome | null>): Promise<void> {
    running++
    const outcome = await ending.catch((error: unknown) => {
      if (!(error instanceof StoreUnavailable)) fail(error)
      const { id: task_id, kind } = execution.claimed
      log.error('A task could not be ended; it runs again when its lease ends', {
        task_id,
        kind,
        reason: messageOf(error),
      })
      return null
    })
    running--
    signalChange()
    await report([{ execution, outcome }])
  }

  /** Settles what ended, and gives up what is held of it. */
  async function report(ended: readonly Ended[]): Promise<void> {
    const outcomes = ended.flatMap(({ outcome }) => outcome ?? [])
    try {
      const accepted = await settle(outcomes)
      outcomes.forEach((outcome, i) => {
        if (outcome.type === 'call') executor.parked(outcome.id, accepted[i] === true)
        if (!accepted[i]) log.info('A late result was refused', { task_id: outcome.id, kind: outcome.kind })
      })
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) {
        fail(error)
        return
      }
      const task_ids = outcomes.map(({ id }) => id)
      log.error('Results could not be stored; their tasks run again when the leases end', {
        task_ids,
        reason: messageOf(error),
      })
    }
    for (const { execution } of ended) {
      // The settle may have brought this very task again.
      if (held.get(execution.claimed.id) === execution) held.delete(execution.claimed.id)
    }
    signalChange()
  }

  /** Claims and runs while `goesOn`; then lets running tasks end, and gives back what does not within the grace. */
  async function work(signal: AbortSignal, goesOn: () => boolean): Promise<void> {
    const helpers = new AbortController()
    const background = [
      keepLeases(keeping, leaseMs, helpers.signal).catch(fail),
      keepTimeLimits(keeping, helpers.signal).catch(fail),
    ]
    const ended = new AbortController()
    let grace: Promise<void> | undefined
    graceOver = new AbortController()
    /** Claims no more; what still runs when the grace is over is given back. */
    const stop = () => {
      stopping = true
      grace ??= clock.sleep(graceMs, ended.signal).then(() => {
        if (!ended.signal.aborted) giveBack()
      })
      signalChange()
    }
    stopping = false
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop, { once: true })
    more = true
    nextLook = 0
    try {
      await Promise.race([claimWhile(() => !stopping && goesOn()), failed.promise])
      stop()
      while (held.size > 0 && !fatal) await changed.promise
    } catch (error) {
      fail(error)
    } finally {
      stop()
      signal.removeEventListener('abort', stop)
      ended.abort()
      helpers.abort()
      await Promise.all([grace, ...background])
    }
    if (fatal) throw fatal.error
  }

  async function claimWhile(goesOn: () => boolean): Promise<void> {
    while (goesOn()) {
      const now = timeNow()
      const lookAt = more ? pausedUntil : Math.max(pausedUntil, Math.min(nextLook, dueAt))
      const free = room() > 0
      if (free && now >= lookAt) {
        await claim()
        continue
      }
      const waited = new AbortController()
      const look = free ? [clock.sleep(lookAt - now, waited.signal)] : []
      await Promise.race([changed.promise, ...look])
      waited.abort()
      // What ends in this turn is claimed for together.
      await gather()
    }
  }

  function giveBack(): void {
    for (const execution of held.values()) {
      execution.abort(new RunAborted('stopping', `The worker of task ${execution.claimed.id} stops.`))
    }
    graceOver.abort()
  }

  return {
    async drain(given = {}, signal = new AbortController().signal) {
      taken = 0
      queued.clear()
      limits = given
      const { maxTasks = Infinity } = limits
      await work(signal, () => mayGoOn() && (held.size > 0 || (more && taken < maxTasks)))
      return { ran: taken, more, queued: [...queued] }
    },

    async loop(signal) {
      limits = {}
      const subscription = await broker.subscribe(kinds, (_kind, at) => wake(at))
      const stopped = new AbortController()
      const background = keepSwept(keeping, sweepMs, AbortSignal.any([signal, stopped.signal])).catch(fail)
      try {
        await work(signal, () => true)
      } finally {
        stopped.abort()
        await background
        await subscription.close()
      }
    },
  }
}

/** A task that is held: it runs, has ended and is not settled yet, or waits to be run. */
type Held = Pick<Execution, 'claimed' | 'timeoutAt' | 'abort' | 'progress'>

/** A claimed task that has not begun. */
class Waiting implements Held {
  readonly claimed: Claimed
  readonly timeoutAt = Number.POSITIVE_INFINITY
  aborted: RunAborted | null = null

  constructor(claimed: Claimed) {
    this.claimed = claimed
  }

  abort(reason: RunAborted): void {
    this.aborted ??= reason
  }

  progress(): undefined {
    return undefined
  }

  /** The outcome that gives it back unrun; null when it is no longer ours. */
  release(): Outcome | null {
    if (this.aborted && this.aborted.code !== 'stopping') return null
    const { id, kind, token } = this.claimed
    return { id, kind, token, type: 'release' }
  }
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

function charsOf(outcome: Outcome): number {
  if (outcome.type === 'end') return outcome.record.length
  if (outcome.type !== 'call') return 0
  const { children, records } = outcome
  return (
    outcome.order.length +
    children.reduce((sum, { envelope }) => sum + envelope.length, 0) +
    records.reduce((sum, { record }) => sum + record.length, 0)
  )
}
