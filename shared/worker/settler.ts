import type { Outcome } from '#shared/broker/broker.ts'
import { createGroup } from '#shared/runtime/group.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import type { Outage } from './outage.ts'

/** Outcomes, and characters in them, that are settled in one call. */
const MAX_SETTLE = 1_000
export const MAX_SETTLE_CHARS = 500_000
/** So many outcomes that wait are settled by a second call beside the one that is under way. */
const SECOND_SETTLE_AT = 100

export interface SettlerDeps {
  readonly outage: Outage
  /** Settles outcomes in one call. Gives the ids that were refused. */
  readonly call: (outcomes: readonly Outcome[]) => Promise<readonly string[]>
  /** Whether an outcome is that of the newest run of its task here: one call takes one outcome of each task. */
  readonly isCurrent: (outcome: Outcome) => boolean
  /** About how many characters a call moves for an outcome. */
  readonly weigh: (outcome: Outcome) => number
  /** Resolves when a call after a pause may go. */
  readonly gather: () => Promise<void>
  /** Aborts when nothing is waited for any more. */
  readonly signal: AbortSignal
}

/** Gives for each outcome whether it was accepted. @throws StoreUnavailable when the store has not said before the signal aborted. */
export type Settler = (outcomes: readonly Outcome[]) => Promise<boolean[]>

/** Settles outcomes together, and for as long as the store does not answer. */
export function createSettler({ outage, call, isCurrent, weigh, gather, signal }: SettlerDeps): Settler {
  const settleTogether = createGroup(settleParts, {
    maxBatch: MAX_SETTLE,
    weigh,
    maxWeight: MAX_SETTLE_CHARS,
    gather,
    secondAt: SECOND_SETTLE_AT,
  })

  /**
   * Settles in one call. A batch that the store refuses is bisected: what it does not take (children, when it is full) must not hold up the rest. Gives for
   * each whether it was accepted, or why the store did not say.
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
    const outcomes = all.every(isCurrent) ? all : all.filter(isCurrent)
    if (outcomes.length === 0) return all.map(() => false)
    const refused = await call(outcomes)
    // Nearly always all are accepted.
    if (refused.length === 0 && outcomes === all) return all.map(() => true)
    const lost = new Set(refused)
    const sent = new Set(outcomes)
    return all.map((outcome) => sent.has(outcome) && !lost.has(outcome.id))
  }

  return (outcomes) => {
    const known = new Map<Outcome, boolean>()
    let open = outcomes
    return outage.insist(async () => {
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
    }, signal)
  }
}

/** Characters that an outcome brings to the store. */
export function charsOf(outcome: Outcome): number {
  if (outcome.type === 'end') return outcome.record.length
  if (outcome.type === 'retry') return outcome.envelope.length
  if (outcome.type !== 'call') return 0
  let chars = outcome.order.length
  for (const { envelope } of outcome.children) chars += envelope.length
  for (const { record } of outcome.records) chars += record.length
  return chars
}
