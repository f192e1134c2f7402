import { areAttempts, MAX_ATTEMPTS_BYTES } from './attempts.ts'
import { type Contract, redact } from './define.ts'
import { isOption, judgeForeign, parseObject } from './foreign.ts'
import { isDeeperThan, isTraceparent, MAX_RESULT_DEPTH } from './limits.ts'
import {
  type Envelope,
  FINAL_STATES,
  type FinalRecord,
  type FinalState,
  isOurs,
  PRIORITIES,
  type ResumePoint,
  type TaskError,
} from './task.ts'

/** The `status_code` of a cancelled task: "client closed request", the one code that no handler or provider answers with. */
export const CANCELLED_STATUS = 499

/** Calls, steps and sleeps that a record may tell of. */
const MAX_CALLS = 10_000_000
/** Characters of an order, and deliveries in its ranges. */
const MAX_ORDER = 500_000
const MAX_ORDERED = 1_000_000

const CANCELLED_ERROR: TaskError = { type: 'cancelled', message: 'The task was cancelled.' }

/**
 * The final record of a task. A succeeded one holds its result: a string as it is, anything else as JSON with `content_type`. Another one
 * holds the error, and its message as the result's text. The payload is kept with its secrets redacted, and left out
 * when there is no contract to tell them.
 */
export function buildRecord(end: {
  contract?: Contract | undefined
  envelope: Envelope
  /** Left out: the one that envelope or contract tell. */
  kind?: string
  state: FinalState
  result?: unknown
  statusCode: number
  error?: TaskError | undefined
  /** The attempt that ended it; 0 when it never ran. */
  attempt: number
  calls: number
  steps: number
  order?: string | undefined
  resume?: ResumePoint | undefined
  startedAt: number | null
  finishedAt: number
}): FinalRecord {
  const { contract, envelope, error, startedAt } = end
  const { max_attempts, priority, timeout_ms, retention_s, created_at, parent, traceparent, given, attempts } = envelope
  const { result, content_type } = error ? { result: error.message } : encodeResult(end.result)
  const kind = end.kind ?? envelope.kind ?? contract?.kind
  // Written out field by field: this is done for every task.
  const record: FinalRecord = { result, status_code: end.statusCode, attempt: end.attempt }
  // Of a success the code tells enough.
  if (end.state !== 'succeeded') record.status = end.state
  if (content_type !== undefined) record.content_type = content_type
  if (kind !== undefined) record.kind = kind
  if (error) record.error = error
  if (contract) record.payload = redact(contract, envelope.payload)
  if (max_attempts !== undefined) record.max_attempts = max_attempts
  if (created_at !== undefined) record.created_at = created_at
  if (startedAt !== null) record.started_at = startedAt
  record.finished_at = end.finishedAt
  if (priority) record.priority = priority
  if (timeout_ms !== undefined) record.timeout_ms = timeout_ms
  if (retention_s !== undefined) record.retention_s = retention_s
  if (parent) record.parent = parent
  if (traceparent) record.traceparent = traceparent
  if (given !== undefined) record.given = given
  if (attempts) record.attempts = attempts
  if (end.calls > 0) {
    record.calls = end.calls
    record.steps = end.steps
    if (end.order) record.order = end.order
    if (end.resume) record.resume = end.resume
  }
  return record
}

/** The record of a task that was cancelled before it ended by itself. */
export function cancelledRecord(end: {
  contract?: Contract | undefined
  envelope: Envelope
  attempt: number
  calls: number
  steps: number
  order: string
  startedAt: number | null
  finishedAt: number
}): FinalRecord {
  return buildRecord({ ...end, state: 'cancelled', statusCode: CANCELLED_STATUS, error: CANCELLED_ERROR })
}

/** A result as a final record holds it. */
function encodeResult(result: unknown): Pick<FinalRecord, 'result' | 'content_type'> {
  if (typeof result === 'string') return { result }
  return { result: JSON.stringify(result) ?? 'null', content_type: 'application/json' }
}

/**
 * The result that a record holds: parsed when it says that it is JSON, and is not nested beyond all measure, else the
 * text.
 */
export function decodeResult(record: FinalRecord): unknown {
  if (record.content_type !== 'application/json' || isDeeperThan(MAX_RESULT_DEPTH, record.result)) return record.result
  try {
    return JSON.parse(record.result)
  } catch {
    return record.result
  }
}

/**
 * Reads a final record, which any program may have written. A result that is not text is taken as JSON, a status code may be written as
 * text, and fields of ours that have the wrong type are left out. Null when it has no result or no status code, or is
 * beyond the limits of the API.
 */
export function readRecord(text: string): FinalRecord | null {
  const { value } = judgeForeign('record', text)
  if (value === null) return null
  const known = fitting(value, RECORD_FIELDS)
  return {
    ...known,
    ...withType(encodeResult(value['result']), known['content_type']),
    status_code: Number(value['status_code']),
  }
}

/** Characters that are kept of a text that is no final record. */
const MAX_UNREADABLE = 10_000

/** As much of a text that is no final record as shows what it is. */
export function beginningOf(text: string): string {
  return text.slice(0, MAX_UNREADABLE).toWellFormed()
}

/**
 * Reads an envelope, which any program may have sent. Null when it has no id. Of a foreign one that `judgeForeign`
 * refuses, nothing but the id is left, and it never makes its task a child: only what Tasker queued is counted by a
 * parent.
 */
export function readEnvelope(text: string): Envelope | null {
  const value = parseObject(text)
  const id = value?.['task_id']
  if (value === null || typeof id !== 'string' || id === '') return null
  if (!isOurs({ id, envelope: text })) return foreignEnvelope(id, text)
  // Nearly always all of it fits: only what does not is taken out.
  for (const name of Object.keys(value)) {
    if (ENVELOPE_FIELDS.get(name)?.(value[name]) === false) delete value[name]
  }
  return value as unknown as Envelope
}

function foreignEnvelope(id: string, text: string): Envelope {
  const { value } = judgeForeign('envelope', text)
  if (value === null) return { task_id: id, payload: undefined }
  return { ...fitting(value, FOREIGN_FIELDS), task_id: id, payload: value['payload'] }
}

/** Characters at the end of an envelope of ours in which it tells when it was created: the errors of its attempts come after that. */
export const ENVELOPE_END = MAX_ATTEMPTS_BYTES + 4_096

/** When the task of an envelope was created; null where it does not tell. Of a large one, {@link ENVELOPE_END} is enough. */
export function createdAtIn(envelope: string): number | null {
  const read = readEnvelope(envelope)
  if (read) return read.created_at ?? null
  const time = /.*"created_at":(\d{1,15})/s.exec(envelope)?.[1]
  return time === undefined ? null : Number(time)
}

type Fits = (value: unknown) => boolean

const isText: Fits = (value) => typeof value === 'string'
const isCount: Fits = (value) => Number.isSafeInteger(value) && Number(value) >= 0
// Who forgets or retries a task looks at each of its calls: a foreign number must not keep it busy for ever.
const isCallCount: Fits = (value) => isCount(value) && Number(value) <= MAX_CALLS
const isOneOf =
  (values: readonly unknown[]): Fits =>
  (value) =>
    values.includes(value)
const isObjectWith =
  (...names: string[]): Fits =>
  (value) =>
    typeof value === 'object' && value !== null && names.every((name) => isText(Reflect.get(value, name)))

// Empty, or one word of a live value.
const isOrder: Fits = (value) => {
  if (typeof value !== 'string' || value.length > MAX_ORDER || !/^(\d+:\d+(-\d+)?(,\d+(-\d+)?)*(;|$))*$/.test(value))
    return false
  let deliveries = 0
  for (const [, first, last] of value.matchAll(/(\d+)-(\d+)/g)) deliveries += Number(last) - Number(first)
  return deliveries <= MAX_ORDERED
}
const isResumePoint: Fits = (value) => {
  if (typeof value !== 'object' || value === null) return false
  const { calls, order = '', keep } = value as Record<string, unknown>
  const isRange = (range: unknown) => Array.isArray(range) && range.length === 2 && range.every(isCallCount)
  return isCallCount(calls) && isOrder(order) && Array.isArray(keep) && keep.every(isRange)
}

const isOptionOf =
  (name: string): Fits =>
  (value) =>
    isOption(name, value)

/** What a foreign producer may say beside id and payload: the list tells the rest. */
const FOREIGN = {
  created_at: isCount,
  priority: isOneOf(PRIORITIES),
  max_attempts: isOptionOf('max_attempts'),
  timeout_ms: isOptionOf('timeout_ms'),
  retention_s: isOptionOf('retention_s'),
  traceparent: isTraceparent,
  attempts: areAttempts,
}
const FOREIGN_FIELDS = new Map<string, Fits>(Object.entries(FOREIGN))

const OURS = { kind: isText, parent: isObjectWith('id', 'kind'), given: isText }

const ENVELOPE_FIELDS = new Map<string, Fits>(
  Object.entries({
    ...FOREIGN,
    ...OURS,
    // A handler may give its children other limits than callers may.
    max_attempts: isCount,
    timeout_ms: isCount,
    v: isOneOf([1]),
  }),
)

const RECORD_FIELDS = new Map<string, Fits>(
  Object.entries({
    ...FOREIGN,
    ...OURS,
    content_type: isText,
    status: isOneOf(FINAL_STATES),
    error: isObjectWith('type', 'message'),
    payload: () => true,
    attempt: isCount,
    started_at: isCount,
    finished_at: isCount,
    calls: isCallCount,
    steps: isCallCount,
    order: isOrder,
    resume: isResumePoint,
    step: isText,
  }),
)

function fitting(value: Record<string, unknown>, fields: ReadonlyMap<string, Fits>): Record<string, unknown> {
  const known: Record<string, unknown> = {}
  for (const name of Object.keys(value)) {
    const field = value[name]
    if (fields.get(name)?.(field)) known[name] = field
  }
  return known
}

function withType(encoded: Pick<FinalRecord, 'result' | 'content_type'>, given: unknown) {
  return encoded.content_type === undefined && typeof given === 'string' ? { ...encoded, content_type: given } : encoded
}
