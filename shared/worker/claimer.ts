import type { Claim, Claimed, ClaimRequest } from '#shared/broker/broker.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import type { StoreUnavailable } from '#shared/task/errors.ts'
import { MAX_PAUSE_MS, type Outage } from './outage.ts'

export interface ClaimerDeps {
  readonly kinds: readonly string[]
  readonly leaseMs: number
  /** How often to look for missed wake-ups, expired leases and due delays, in ms. */
  readonly pollMs: number
  readonly clock: Clock
  readonly outage: Outage
  readonly random: () => number
  /** Takes what was claimed. */
  readonly onTasks: (tasks: readonly Claimed[]) => void
}

/** Decides when to claim, and learns from each answer when to claim next. */
export class Claimer {
  readonly #deps: ClaimerDeps
  /** Whether more is likely to be queued than was claimed. */
  #more = true
  #wakes = 0
  #claims = 0
  /** Slots that calls under way have asked for. */
  #asked = 0
  /** When to look for what no wake-up told, and when something is known to be due. */
  #nextLook = 0
  #dueAt = 0
  /** No claims before, since the store did not answer. */
  #pausedUntil = 0
  /** Claims in a row that were not answered. */
  #failed = 0
  /** The kind that is first in the next call. */
  #turn: number

  constructor(deps: ClaimerDeps) {
    this.#deps = deps
    this.#turn = Math.floor(deps.random() * deps.kinds.length)
  }

  get more(): boolean {
    return this.#more
  }

  get asked(): number {
    return this.#asked
  }

  /** Something was queued (`at` null), or will be due. */
  wake(at: number | null): void {
    this.#wakes++
    if (at === null) this.#more = true
    else this.#dueAt = Math.min(this.#dueAt, at)
  }

  /** What is reported now queues tasks: the same call may bring them. */
  expectMore(): void {
    this.#more = true
  }

  /** When to claim next. */
  claimAt(now: number): number {
    // When a clock was put back, what was about to be done does not wait until the old time comes again.
    this.#nextLook = Math.min(this.#nextLook, now + this.#deps.pollMs)
    this.#pausedUntil = Math.min(this.#pausedUntil, now + MAX_PAUSE_MS)
    return this.#more ? this.#pausedUntil : Math.max(this.#pausedUntil, Math.min(this.#nextLook, this.#dueAt))
  }

  /** What to ask for with so many slots free. Each kind has its turn to be first among those of one priority. */
  request(limit: number): ClaimRequest {
    const { kinds, leaseMs, pollMs, clock } = this.#deps
    const now = clock.now()
    const takeBack = now >= Math.min(this.#nextLook, now + pollMs, this.#dueAt)
    if (takeBack) {
      this.#nextLook = now + pollMs
      this.#dueAt = Number.POSITIVE_INFINITY
    }
    this.#turn = (this.#turn + 1) % kinds.length
    return { kinds: [...kinds.slice(this.#turn), ...kinds.slice(0, this.#turn)], limit, leaseMs, takeBack }
  }

  /** Makes a call that may bring tasks. What it brings is told before this resolves. */
  async asking<T>(
    request: ClaimRequest | undefined,
    call: () => Promise<T>,
    claimOf: (answer: T) => Claim | null,
  ): Promise<T> {
    const wakes = this.#wakes
    const mine = request ? ++this.#claims : this.#claims
    const limit = request?.limit ?? 0
    this.#asked += limit
    try {
      const answer = await call()
      const claim = claimOf(answer)
      if (!claim) return answer
      const { now } = this.#deps.clock
      const dueNow = claim.nextDueAt !== null && claim.nextDueAt <= now()
      // An answer that is older than a wake-up or than another claim says nothing of what is queued now.
      if (dueNow || claim.tasks.length >= limit) this.#more = true
      else if (wakes === this.#wakes && this.#claims === mine) this.#more = false
      if (claim.nextDueAt !== null) this.#dueAt = Math.min(this.#dueAt, claim.nextDueAt)
      this.#deps.onTasks(claim.tasks)
      return answer
    } finally {
      this.#asked -= limit
    }
  }

  /** A claim was answered. */
  answered(): void {
    this.#failed = 0
    this.#deps.outage.answered()
  }

  /** A claim was not answered: the next has to wait. */
  unanswered(error: StoreUnavailable): void {
    this.#more = true
    this.#pausedUntil = this.#deps.clock.now() + this.#deps.outage.unanswered(error, ++this.#failed)
  }
}
