import type { FailedAttempt } from './attempts.ts'

/** What a task is: its states, its envelope, its final record and its id. The words are those of docs/protocol.md. */

export const PRIORITIES = ['high', 'normal', 'low'] as const
export type Priority = (typeof PRIORITIES)[number]

export const LIVE_STATES = ['queued', 'running', 'waiting', 'delayed'] as const
export const FINAL_STATES = ['succeeded', 'failed', 'cancelled'] as const
export type LiveState = (typeof LIVE_STATES)[number]
export type FinalState = (typeof FINAL_STATES)[number]
export type State = LiveState | FinalState

/** The parent of a child: enough to find it in the store without reading it. */
export interface ParentRef {
  id: string
  kind: string
  /**
   * Set where the parent awaits this child beside other things: `one` when its end alone wakes the parent, else the number of the first
   * child of its group, whose last end wakes it. Left out where the parent waits for all its children together.
   */
  group?: 'one' | number
}

/**
 * The JSON that travels in a queue. Only `task_id` and `payload` are required: the rest is added by Tasker, and a task of a
 * foreign producer lacks it. `v` marks an envelope whose task is also kept in the store's live records.
 * Times are milliseconds since the epoch.
 */
export interface Envelope {
  task_id: string
  v?: 1
  kind?: string
  payload: unknown
  created_at?: number
  priority?: Priority
  max_attempts?: number
  timeout_ms?: number
  /** Seconds that the final record is kept; 0 keeps it. */
  retention_s?: number
  parent?: ParentRef
  traceparent?: string
  /** A digest of the payload as its parent gave it, where its schema made something else of it: what a re-run of the parent is compared with. */
  given?: string
  /** Errors of the attempts that failed, the last ones; left out while there is none. */
  attempts?: FailedAttempt[]
}

/** The final record's error: `type` is a short code (`timeout`, `invalid_input`), `message` a sentence. */
export interface TaskError {
  type: string
  message: string
}

/**
 * The final record of a task, in the shape of an HTTP answer: `result` is the body, `status_code` says how it went. Only those two
 * are required (foreign workers write no more); `content_type: application/json` says that the text is JSON.
 */
export interface FinalRecord {
  result: string
  status_code: number
  content_type?: string
  kind?: string
  status?: FinalState
  error?: TaskError
  /** As validated, with `"[sealed]"` in the place of every secret. */
  payload?: unknown
  attempt?: number
  /** As in the envelope: without the error that ended the task. */
  attempts?: FailedAttempt[]
  max_attempts?: number
  created_at?: number
  started_at?: number
  finished_at?: number
  priority?: Priority
  timeout_ms?: number
  retention_s?: number
  parent?: ParentRef
  /** Length of the history: calls, steps and sleeps, numbered from 0. */
  calls?: number
  /** How many of `calls` were steps and sleeps, which are records but not tasks. */
  steps?: number
  /** The order in which entries of the history completed for the handler, where it is not that of their numbers. */
  order?: string
  /** Of a task that failed: where a retry goes on from, if not from all of its history. */
  resume?: ResumePoint
  /** Of an entry of the history that is no task: the name of the step, `sleep`, or the call that was refused. */
  step?: string
  /** As in the envelope. */
  given?: string
  traceparent?: string
}

/** The history as it was before the failure that ended a run. */
export interface ResumePoint {
  /** Its length: what came later is forgotten. */
  calls: number
  order?: string
  /** First and last number of the entries whose failures the handler went on from: all others that failed are called again. */
  keep: [first: number, last: number][]
}

/** How long a final record is kept when its task does not say: 7 days. */
export const DEFAULT_RETENTION_S = 604_800

/** The text that goes into a queue. `task_id` and `v` come first: scripts recognise an envelope of ours by its first bytes. */
export function encodeEnvelope(envelope: Omit<Envelope, 'v'>): string {
  const { task_id, ...rest } = envelope
  return JSON.stringify({ task_id, v: 1, ...rest })
}

const BEFORE_ID = '{"task_id":"'.length

/** Whether an envelope is one that Tasker made, and whose payload was parsed by then: the rule of the scripts, which go by its first bytes. */
export function isOurs({ id, envelope }: { id: string; envelope: string }): boolean {
  // Nearly all ids are the same in JSON.
  if (envelope.startsWith('","v":1,', BEFORE_ID + id.length)) return envelope.startsWith('{"task_id":"')
  return envelope.startsWith(`{"task_id":${JSON.stringify(id)},"v":1,`)
}

/** The id of a task's n-th call, from 0. Its record is the parent's history. */
export function childId(parentId: string, n: number): string {
  return `${parentId}.${n}`
}

/** The id of the outermost ancestor: it decides the partition. */
export function rootOf(id: string): string {
  const dot = id.indexOf('.')
  return dot < 0 ? id : id.slice(0, dot)
}

/** The state that a final record stands for: its status code tells, unless it says otherwise. */
export function finalState(record: FinalRecord): FinalState {
  return record.status ?? (record.status_code < 400 ? 'succeeded' : 'failed')
}

/** When a record expires, in ms since the epoch; null keeps it, also when it does not tell. A child goes with its root. */
export function expiryOf(record: {
  finished_at?: number | undefined
  parent?: ParentRef | undefined
  retention_s?: number | undefined
}): number | null {
  const { finished_at, parent, retention_s = DEFAULT_RETENTION_S } = record
  return finished_at === undefined || parent || retention_s === 0 ? null : finished_at + retention_s * 1000
}

/** Milliseconds at which a UUIDv7 (or its descendant) was made; null for other ids. */
export function createdAtOf(id: string): number | null {
  const root = rootOf(id)
  return /^[0-9a-f]{8}-[0-9a-f]{4}-7/.test(root) ? Number.parseInt(root.slice(0, 8) + root.slice(9, 13), 16) : null
}
