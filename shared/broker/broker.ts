import type { FinalState, LiveState, ParentRef, Priority, State } from '#shared/task/task.ts'

/**
 * The port to a store. Each method takes a batch, is atomic for each partition and safe to send twice: ids and tokens make a repeated call
 * harmless, so an answer that was lost after the store acted costs nothing. Drivers persist what they are told; the rules (is it retried, when, is
 * it final, what goes with it) are computed by the callers from `#shared/task`. Texts (envelopes, records) are opaque to a driver, but
 * for the `task_id` of a foreign envelope. Every method rejects with `StoreUnavailable` when the store does not answer.
 * Time is the clock given to the driver; all times are milliseconds since the epoch. A method that is given one that is not finite rejects with a
 * `TypeError` and does nothing.
 */
export interface Broker {
  /**
   * Stores and queues tasks: first in, first out within kind and priority. With `dueAt` in the future a task is delayed first.
   * An id that is known, live or final, is left as it is and comes back with `created: false`.
   * Wakes the subscribers of the kinds.
   */
  enqueue(tasks: readonly NewTask[]): Promise<Enqueued[]>

  /**
   * Takes up to `limit` queued tasks to run, `high` before `normal` before `low`, in the order of `kinds` within one priority; they
   * are running until the lease ends. It returns fewer only when no more are queued, or
   * when the envelopes are large: then `nextDueAt` is now. With `takeBack` it
   * first puts back what is due of these kinds: expired leases (which use up an attempt), delays and sleeps that are over. What comes back goes to the front of
   * its queue. An envelope without a readable id is kept aside and counted (`stats`); one whose task was cancelled,
   * removed or is already running is dropped.
   */
  claim(request: ClaimRequest): Promise<Claim>

  /**
   * Reports how claimed tasks ended, each guarded by its token, and claims the next ones in the same call. An outcome whose token is not the current one is refused and changes
   * nothing. At most one outcome for a task in one call. A waiting parent is queued again, at the front, when its last
   * unfinished child ends, when one ends that it awaits alone (`group` is `one`), or the last of a group that it awaits beside others.
   */
  settle(outcomes: readonly Outcome[], next?: ClaimRequest): Promise<Settled>

  /** Moves the deadline of each lease to `leaseMs` from now and stores progress. Returns the leases that are no longer held. */
  extend(leases: readonly Lease[], leaseMs: number): Promise<Lapsed>

  /**
   * What is known of each id, in order; null where nothing is. A final record wins over a live one. With `some` it may give fewer, and at least the
   * first, when they are large: about a megabyte. With `endedOnly` it gives final records alone, and null for a live
   * task, whose envelope is not read.
   */
  get(ids: readonly string[], options?: { some?: boolean; endedOnly?: boolean }): Promise<(Stored | null)[]>

  /** Ends each live task as cancelled, whatever its state, with the record given; a final or unknown one is left as it is. Its descendants are the caller's business (`cancelTree`). */
  cancel(tasks: readonly Cancellation[]): Promise<Cancelled[]>

  /**
   * Forgets final records. A live or unknown id is left as it is. Descendants are the caller's business (`removeTree`). Returns those left that have a final
   * record all the same: they are to be taken over first (`adopt`).
   */
  remove(tasks: readonly Removal[]): Promise<Foreign[]>

  /**
   * Reserves ended tasks for one caller, who is about to retry them: nobody else gets them for `leaseMs` from now. Gives a token for each, in order; null for one
   * that has no final record, is live all the same, or is reserved by another. With the token that was given before it goes on for longer, under a new one. Once a
   * reservation is over, another may take the task, and the token may be refused.
   */
  reserve(tasks: readonly Reservable[], leaseMs: number): Promise<(string | null)[]>

  /**
   * Queues ended roots again, at the back, from attempt 1, their history kept: the final record is dropped. Each is guarded by the token of its reservation. Returns
   * the ids that were queued; one that is not reserved under its token is left as it is.
   */
  retry(tasks: readonly Retry[]): Promise<string[]>

  /**
   * Ids of one kind in one state, newest first as far as the store's order tells: `queued` from the back of the queue (`high`, then `normal`, then `low`), final
   * states by the time they ended, the others by the time they come back. May name an id twice or one that has just moved on.
   * `after` is the place of the last one that is not wanted again; empty at first. Fewer than `limit` are the last,
   * unless the last of them says `isCut`.
   */
  list(query: { kind: string; state: State; after: Place; limit: number }): Promise<Listed[]>

  /** Counts of each kind. Final counts are of the records still kept. */
  stats(kinds: readonly string[]): Promise<KindStats[]>

  /**
   * Notes that tasks of these kinds may come, once when a process starts, and gives kinds that may have tasks: every one that was noted and has some, and perhaps others
   * that were noted or have some. With none it only gives them.
   */
  kinds(noted: readonly string[]): Promise<string[]>

  /**
   * Looks for work that nobody reports, at most `limit` of each: roots whose record has expired, and live tasks that already have a final record, written by a foreign worker.
   * Forgets nothing; goes on from call to call until it has seen everything, then begins anew. What it gives as
   * expired, and is not removed, it may not give again for a minute: so several who sweep at once share the work.
   */
  sweep(limit: number): Promise<Swept>

  /** Calls `wake` when tasks of these kinds are queued (`at` null) or will be due (`at` in ms). May call too often; a lost message costs only the wait for the next poll. */
  subscribe(kinds: readonly string[], wake: (kind: string, at: number | null) => void): Promise<Subscription>

  /** Calls `on` for events of tasks. `end` names tasks that have reached a final state: roots always, children only where the store can tell for free. Events may be lost. */
  watch(on: (event: TaskEvent) => void): Promise<Subscription>

  /** Sends a chunk that a running task emits to those who watch. Nothing is stored. */
  emit(chunks: readonly { id: string; chunk: string }[]): Promise<void>

  /** Resolves when the store answers. */
  ping(): Promise<void>

  /** Gives back connections and files. Calling it twice is harmless. */
  close(): Promise<void>
}

export interface NewTask {
  id: string
  kind: string
  priority: Priority
  /** Set for a child. Its root decides the partition; its end is reported to the parent. */
  parent?: ParentRef | undefined
  envelope: string
  /** The task is delayed until then; null or the past: queued at once. */
  dueAt?: number | null
  /** True when the id was made a moment ago by the caller and cannot be known yet: saves the look-up on the first send. */
  fresh?: boolean
}

export interface Reservable {
  id: string
  /** Of the reservation that is to go on. */
  token?: string | null
}

export interface Retry extends Pick<NewTask, 'id' | 'kind' | 'priority' | 'envelope'> {
  /** Of the reservation. */
  token: string
  /** What the task goes on from. */
  history: History
  /** How the task ended whose record is dropped. */
  ended: Ended | null
}

/** What a task keeps of its history beside the entries. */
export interface History {
  /** Its length. */
  calls: number
  /** How many entries are steps or sleeps. */
  steps: number
  /** The order in which the entries completed, where it is not that of their numbers; else empty. One word, opaque to a driver. */
  order: string
}

/** A final record that is no longer wanted. */
export interface Removal {
  id: string
  /** Left out or null for a step, which is no task, and for a foreign record, which does not tell. */
  ended?: Ended | null
}

/** How a task ended, as it was said then: a driver finds it by that among others. */
export interface Ended {
  kind: string
  state: FinalState
  /** Null when it is not known. */
  at: number | null
  /** Null when it was kept, or that is not known. */
  expiresAt: number | null
}

export interface Enqueued {
  id: string
  created: boolean
}

export interface ClaimRequest {
  kinds: readonly string[]
  limit: number
  leaseMs: number
  /** Whether to put back expired leases and due delays first. Costs a few commands: a worker asks for it once in a while, and when it is idle. */
  takeBack: boolean
}

export interface Claim {
  tasks: Claimed[]
  /** When the next lease or delay of these kinds is due, at most now when there is more to claim; null when nothing is known to be due. */
  nextDueAt: number | null
}

export interface Claimed {
  id: string
  kind: string
  /** Names this lease. */
  token: string
  /** 1 for the first run. A run that goes on after waiting for children is the same attempt. */
  attempt: number
  /** The task's history so far. */
  calls: number
  steps: number
  order: string
  /** When this attempt began: a run that goes on after waiting began before this claim. */
  startedAt: number
  envelope: string
}

/** The right to report on one claimed task. */
export interface Lease {
  id: string
  kind: string
  token: string
  /** Shown by `get` while the task is live. */
  progress?: { done: number; total: number } | undefined
}

export type Outcome = Omit<Lease, 'progress'> & { parent?: ParentRef | undefined } & (
    | EndOutcome
    | RetryOutcome
    | ReleaseOutcome
    | CallOutcome
    | AdoptOutcome
  )

/** The task is final, with this record. */
export interface EndOutcome {
  type: 'end'
  state: FinalState
  record: string
  endedAt: number
  /** When the record expires; null keeps it. Ignored for a child, which goes with its root. */
  expiresAt: number | null
}

/** The attempt failed: delayed until `at`, the attempt used up. */
export interface RetryOutcome {
  type: 'retry'
  at: number
  /** Its envelope from now on, which tells of the attempt. */
  envelope: string
}

/** Given back unrun: queued at the front, the attempt not used up. */
export interface ReleaseOutcome {
  type: 'release'
}

/**
 * The task calls children, or notes results of steps. Children whose id is known are left as they are. With `park` the
 * lease is given back: the task waits until something that it awaits has ended, or until `wakeAt`, whichever is first. What has ended since it looked queues it again at once.
 * Without `park` it goes on running (a large fan-out comes in several calls, and only the last one parks).
 */
export interface CallOutcome {
  type: 'call'
  children: readonly NewTask[]
  /** Entries of the history that are not tasks: final records under the id `<task id>.<n>`. */
  records: readonly { id: string; record: string }[]
  /** The history after this call. */
  calls: number
  steps: number
  order: string
  park: boolean
  wakeAt: number | null
  /**
   * What a parked task awaits. Null: all its children together. Else each of them by its `group`: `alone` is how many children of the group `one` have
   * not ended as far as the caller knows, `groups` are the other groups that have not ended. Ignored without `park`.
   */
  awaits: { alone: number; groups: readonly number[] } | null
}

/** Not guarded by a token (leave it empty): the task has a final record already, from a foreign worker, of which this is the whole form. Its live record is dropped and its parent told. */
export interface AdoptOutcome extends Omit<EndOutcome, 'type'> {
  type: 'adopt'
}

export interface Settled {
  /** Ids whose outcome was refused. */
  refused: string[]
  next: Claim | null
}

export interface Lapsed {
  /** Taken by another worker, or ended by it. */
  lost: string[]
  /** Cancelled, or removed. */
  cancelled: string[]
}

/** `record` is set for a final task, `live` for one that is not. */
export type Stored = { id: string; record: string; live: null } | { id: string; record: null; live: Live }

export interface Live {
  state: LiveState
  kind: string
  /** Attempts used up so far; the one that runs is not among them. */
  attempts: number
  calls: number
  steps: number
  order: string
  /** Children that have not ended. */
  pending: number
  /** When the present attempt began; null before its first run. */
  startedAt: number | null
  progress: { done: number; total: number } | null
  envelope: string
}

export interface Cancellation {
  id: string
  kind: string
  parent?: ParentRef | undefined
  record: string
  endedAt: number
  expiresAt: number | null
}

export interface Cancelled {
  id: string
  cancelled: boolean
  /** Length of its history at that moment. */
  calls: number
}

/** Where a listed task stands, in the driver's own terms: whole numbers, at most three. */
export type Place = readonly number[]

export interface Listed {
  id: string
  place: Place
  /**
   * Set on the last one where more may follow, though there are fewer than were asked for: those that were read are
   * large.
   */
  isCut?: boolean
}

export interface KindStats {
  kind: string
  queued: number
  running: number
  waiting: number
  delayed: number
  succeeded: number
  failed: number
  cancelled: number
  /** Envelopes kept aside because they have no readable id. */
  broken: number
  /** When the tasks at the front of the three queues were created, where they tell. */
  oldest: number[]
  /** Ended within the last 60 s, give or take 10 ms; of a great many, about how many. */
  lastMinute: { succeeded: number; failed: number }
}

export interface Swept {
  /** Roots whose final record has expired. */
  expired: string[]
  foreign: Foreign[]
}

/** A live task that has a final record: a foreign worker wrote it. */
export interface Foreign {
  id: string
  kind: string
  record: string
  envelope: string
  /** The history, where the store tells. */
  calls?: number
  steps?: number
  order?: string
}

export type TaskEvent =
  /** A record is null where the store does not tell it with the event: then ask for it. */
  { type: 'end'; tasks: { id: string; record: string | null }[] } | { type: 'chunk'; id: string; chunk: string }

export interface Subscription {
  close(): Promise<void>
}

/** What every driver is given beside its own connection. */
export interface BrokerOptions {
  /** Milliseconds since the epoch. */
  now?: () => number
}
