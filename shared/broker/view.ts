import { attemptsBefore, failedAttempt, MAX_ATTEMPTS_KEPT, type ShownAttempt } from '#shared/task/attempts.ts'
import { type Contract, redact } from '#shared/task/define.ts'
import { beginningOf, decodeResult, readEnvelope, readRecord } from '#shared/task/record.ts'
import {
  createdAtOf,
  type Envelope,
  type FinalRecord,
  finalState,
  type State,
  type TaskError,
} from '#shared/task/task.ts'
import type { Live, Stored } from './broker.ts'

export type Contracts = Readonly<Record<string, Contract>>

/** A task as the HTTP interface shows it. Times are ISO 8601 in UTC; what is not known, or not yet, is null. */
export interface TaskView {
  task_id: string
  kind: string | null
  /** False where this service does not know the kind: its handler was renamed or taken out, or a foreign program did not say it. */
  registered: boolean
  status: State
  /** Secrets show as `"[sealed]"`. */
  payload: unknown
  /** Null until the task has succeeded. */
  result: unknown
  status_code: number | null
  error: TaskError | null
  /** Of the last attempt that failed, whatever became of the task; null when none has. */
  last_error: Omit<AttemptView, 'attempt'> | null
  /** How the last ten attempts failed, the last of them at the end. */
  attempts: AttemptView[]
  /** Number of the present or last run; 0 before the first. */
  attempt: number
  max_attempts: number | null
  created_at: string | null
  started_at: string | null
  finished_at: string | null
  parent_id: string | null
  children: { total: number; done: number }
  progress: { done: number; total: number } | null
}

/** A failed attempt as it is shown, its texts cut. Code and time are null where its worker died, and nobody knows. */
export type AttemptView = Omit<ShownAttempt, 'at'> & { at: string | null }

/** What is stored of a task, as it is shown. Whatever foreign programs have written, it does not throw. */
export function viewOf(stored: Stored, contracts: Contracts): TaskView {
  return stored.live ? liveView(stored.id, stored.live, contracts) : finalView(stored.id, stored.record, contracts)
}

/** The contract of a kind; undefined when the kind is unknown here. */
export function contractOf(contracts: Contracts, kind: string | undefined): Contract | undefined {
  return kind !== undefined && Object.hasOwn(contracts, kind) ? contracts[kind] : undefined
}

/** The attempt that runs, or ran last; 0 before the first. */
export function attemptOf(live: Live): number {
  if (live.state === 'running' || live.state === 'waiting') return live.attempts + 1
  // A run that waited for its children and is queued to go on has begun, but has not used up its attempt.
  return live.startedAt === null ? live.attempts : Math.max(1, live.attempts)
}

/** True when the record is an entry of its parent's history that was not a task: a step or a sleep. */
export function isStep(stored: Stored): boolean {
  return stored.record !== null && readRecord(stored.record)?.step !== undefined
}

/** Milliseconds since the epoch at which the task was created, from its envelope or record, else from its id; null when neither tells. */
export function createdAt(stored: Stored): number | null {
  const written = stored.live ? readEnvelope(stored.live.envelope) : readRecord(stored.record)
  return written?.created_at ?? createdAtOf(stored.id)
}

function liveView(id: string, live: Live, contracts: Contracts): TaskView {
  const envelope: Envelope = readEnvelope(live.envelope) ?? { task_id: id, payload: null }
  const contract = contractOf(contracts, live.kind)
  const total = Math.max(0, live.calls - live.steps)
  return {
    task_id: id,
    kind: live.kind,
    registered: contract !== undefined,
    status: live.state,
    // Without its contract nobody knows what is secret in it.
    payload: contract ? redact(contract, envelope.payload ?? null) : null,
    result: null,
    status_code: null,
    error: null,
    ...attemptsView(attemptsBefore(envelope.attempts, live.attempts)),
    attempt: attemptOf(live),
    max_attempts: envelope.max_attempts ?? contract?.retry.maxAttempts ?? null,
    created_at: iso(envelope.created_at ?? createdAtOf(id)),
    started_at: iso(live.startedAt),
    finished_at: null,
    parent_id: envelope.parent?.id ?? null,
    children: { total, done: Math.max(0, total - live.pending) },
    progress: live.progress,
  }
}

function finalView(id: string, text: string, contracts: Contracts): TaskView {
  const read = readRecord(text)
  const record: FinalRecord = read ?? UNREADABLE
  const contract = contractOf(contracts, record.kind)
  const status = finalState(record)
  const total = Math.max(0, (record.calls ?? 0) - (record.steps ?? 0))
  return {
    task_id: id,
    kind: record.kind ?? null,
    registered: contract !== undefined,
    status,
    payload: contract ? redact(contract, record.payload ?? null) : (record.payload ?? null),
    result: read === null ? beginningOf(text) : status === 'succeeded' ? decodeResult(record) : null,
    status_code: record.status_code,
    error: status === 'succeeded' ? null : (record.error ?? { type: 'failed', message: record.result }),
    ...attemptsView(attemptsOf(record)),
    attempt: record.attempt ?? 1,
    max_attempts: record.max_attempts ?? contract?.retry.maxAttempts ?? null,
    created_at: iso(record.created_at ?? createdAtOf(id)),
    started_at: iso(record.started_at ?? null),
    finished_at: iso(record.finished_at ?? null),
    parent_id: record.parent?.id ?? null,
    children: { total, done: total },
    progress: null,
  }
}

/** Those that failed of a task that has ended: the last one of them, if it ended the task. */
function attemptsOf(record: FinalRecord): ShownAttempt[] {
  const { attempt = 1, attempts, status_code, error, started_at, finished_at } = record
  const state = finalState(record)
  // One that was cancelled may have waited for its next attempt.
  const isOver = state === 'cancelled' && (started_at === undefined || attempts?.at(-1)?.attempt === attempt)
  const before = attemptsBefore(attempts, isOver ? attempt : attempt - 1)
  if (state !== 'failed' || error?.type === 'worker_lost') return before
  const { type, message } = error ?? { type: 'failed', message: record.result }
  const last = failedAttempt({ attempt, type, message, status_code, at: finished_at ?? 0 })
  return [...before, { ...last, at: finished_at ?? null }].slice(-MAX_ATTEMPTS_KEPT)
}

function attemptsView(shown: readonly ShownAttempt[]): Pick<TaskView, 'last_error' | 'attempts'> {
  const attempts = shown.map((one) => ({ ...one, at: iso(one.at) }))
  const last = attempts.at(-1)
  if (!last) return { last_error: null, attempts }
  const { attempt: _, ...last_error } = last
  return { last_error, attempts }
}

const UNREADABLE: FinalRecord = {
  result: '',
  status_code: 500,
  status: 'failed',
  error: { type: 'unreadable_record', message: 'What is stored as the result of this task is not a final record.' },
}

// Foreign numbers may lie outside of what a Date can hold.
function iso(time: number | null): string | null {
  return time !== null && Math.abs(time) <= 8.64e15 ? new Date(time).toISOString() : null
}
