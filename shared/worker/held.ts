import type { Claimed, Outcome } from '#shared/broker/broker.ts'
import type { RunAborted } from '#shared/task/errors.ts'
import type { Execution } from './execute.ts'

/** A task that is held: it runs, has ended and is not settled yet, or waits to be run. */
export type Held = Pick<Execution, 'claimed' | 'timeoutAt' | 'abort' | 'progress' | 'failure'>

/** A claimed task that has not begun. */
export class Waiting implements Held {
  readonly claimed: Claimed
  readonly timeoutAt = Number.POSITIVE_INFINITY
  readonly failure = null
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
