import type { FinalState } from '#shared/task/task.ts'
import type { Spec } from './kinds.ts'

/** What a run saw from outside of Tasker: all that the checker knows. Times are milliseconds of the system's clock. */
export interface Recording {
  readonly acknowledged: Acknowledged[]
  /** Ids of tasks for which a cancellation was asked; `at` when it was acknowledged. */
  readonly cancellations: { id: string; at: number | null }[]
  readonly seen: Seen[]
  /** Steps that ran. */
  readonly ran: { id: string; step: string; value: string }[]
  /** One for each life of the store. */
  readonly lives: Life[]
  end: Dump
}

/** A 201. */
export interface Acknowledged {
  readonly id: string
  readonly spec: Spec
  readonly key: string | null
  readonly at: number
}

/** A final state that the manager showed. */
export interface Seen {
  readonly id: string
  readonly at: number
  /** What may never change of it. */
  readonly view: string
}

/** The time between two crashes of the store, or of one part of it that crashes by itself. */
export interface Life {
  /** Which part; left out where the store crashes as a whole. */
  readonly part?: string
  /** Whether nothing is acknowledged before a replica has it, so that no crash may take what was. */
  readonly replicated?: boolean
  /** Ids that were put into a queue as new tasks; left out where that is not seen. */
  readonly queued?: ReadonlySet<string>
  /** Those for which that happened again. */
  readonly queuedTwice?: readonly string[]
  /** What was stored when it began, before anybody was let in. */
  readonly start: Dump
  readonly commits: Commit[]
  /** Root's id → when it was stored first. */
  readonly stored: Map<string, number>
  /** What the store acknowledged until then, it had to keep; null when it did not crash. */
  safeUntil: number | null
  crashedAt: number | null
}

/** A write of a final record. */
export interface Commit {
  readonly id: string
  readonly at: number
  readonly record: string
  /** The token that ended the task; null when none is needed, or is not known. */
  readonly token: string | null
  /** The token that held the task at that moment; null when it was not seen in this life. */
  readonly holder: string | null
}

/** All that a store holds. */
export interface Dump {
  readonly at: number
  /** Id → final record; also of steps. */
  readonly final: ReadonlyMap<string, string>
  /** Id → live value. */
  readonly live: ReadonlyMap<string, string>
  /** Id → the final states in whose sets it is. */
  readonly ended: ReadonlyMap<string, readonly FinalState[]>
  /** Ids of the envelopes in the queues. */
  readonly queued: ReadonlySet<string>
  /** What else names a task that has not ended, as sentences. */
  readonly left: readonly string[]
}

export const EMPTY_DUMP: Dump = {
  at: 0,
  final: new Map(),
  live: new Map(),
  ended: new Map(),
  queued: new Set(),
  left: [],
}
