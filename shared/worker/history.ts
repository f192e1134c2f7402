import type { Broker, CallOutcome, NewTask } from '#shared/broker/broker.ts'
import { type Keyring, sealPayload } from '#shared/runtime/seal.ts'
import { redact } from '#shared/task/define.ts'
import { ChildFailed, PermanentError } from '#shared/task/errors.ts'
import { decodeResult, readEnvelope, readRecord } from '#shared/task/record.ts'
import {
  childId,
  type Envelope,
  encodeEnvelope,
  type FinalRecord,
  finalState,
  type Priority,
} from '#shared/task/task.ts'
import { type CallGroup, mismatch, type Sleep } from './run.ts'

/** A fan-out goes to the store in parts of so many children or characters, so that no call grows over about half a megabyte. */
const PART_TASKS = 500
const PART_CHARS = 400_000

/** Results and payloads of more bytes fail their task: they would not pass the limits of stores and of readers. */
const MAX_TEXT_BYTES = 1_048_576

/** @throws PermanentError when the text is longer than `MAX_TEXT_BYTES`; `what` says whose it is. */
export function limitSize(text: string, what: () => string): void {
  if (text.length * 3 <= MAX_TEXT_BYTES || new TextEncoder().encode(text).length <= MAX_TEXT_BYTES) return
  throw new PermanentError(
    `${what()} is larger than ${MAX_TEXT_BYTES} bytes: store it elsewhere, and hand on where it is.`,
    {
      code: 'too_large',
    },
  )
}

/** The parent as its history needs it. */
export interface Parent {
  readonly id: string
  readonly kind: string
  readonly priority: Priority
  readonly traceparent: string | undefined
  /** Length of the history when this run began. What comes after it was called by this very run, and cannot be another call. */
  readonly before: number
  /** Length of the history in the store, and the steps and sleeps in it. */
  calls: number
  steps: number
}

/**
 * Fills in what the store knows of the entries a run waits for, and lets the handler go on with those that are complete. Returns whether any is. An
 * entry that is not the one of an earlier run ends the task with `HistoryMismatch`.
 */
export async function replay(
  broker: Broker,
  parent: Parent,
  waiting: readonly (CallGroup | Sleep)[],
  now: number,
): Promise<boolean> {
  let went = false
  for (const entry of waiting) {
    if (entry.type === 'sleep') {
      if (!entry.stored && entry.first < parent.calls) {
        const text = await loadStep(broker, parent, entry.first, 'sleep')
        if (text !== null) Object.assign(entry, { until: Number(text), stored: true })
      }
      if (entry.until === null || entry.until > now) continue
      entry.settle()
      went = true
    } else if (await replayGroup(broker, parent, entry)) {
      entry.settle()
      went = true
    }
  }
  return went
}

async function replayGroup(broker: Broker, parent: Parent, group: CallGroup): Promise<boolean> {
  const open: number[] = []
  group.payloads.forEach((_, i) => {
    if (group.results[i] === undefined) open.push(i)
  })
  const known = open.filter((i) => group.first + i < parent.calls)
  const missing = open.slice(known.length)
  const load = (from: number) => {
    const part = known.slice(from, from + PART_TASKS)
    const stored = broker.get(part.map((i) => childId(parent.id, group.first + i)))
    // Nobody awaits it when the part before it fails the task.
    stored.catch(() => undefined)
    return { part, stored }
  }
  // The next part is on its way while this one is read.
  let next = known.length > 0 ? load(0) : null
  for (let from = PART_TASKS; next; from += PART_TASKS) {
    const { part } = next
    const stored = await next.stored
    next = from < known.length ? load(from) : null
    part.forEach((i, at) => {
      const child = stored[at]
      if (child?.record) group.results[i] = resultOf(parent, group, i, child.record)
      else if (child?.live) sameCall(parent, group, i, readEnvelope(child.live.envelope) ?? {})
      else missing.push(i)
    })
  }
  group.missing = missing.sort((a, b) => a - b)
  return missing.length === 0 && known.every((i) => group.results[i] !== undefined)
}

function resultOf(parent: Parent, group: CallGroup, i: number, text: string): { value: unknown } | { error: Error } {
  const n = group.first + i
  const taskId = childId(parent.id, n)
  const { contract } = group
  const failure = (statusCode: number, type: string, message: string) => ({
    error: new ChildFailed({ taskId, kind: contract.kind, statusCode, type, message }),
  })
  const record = readRecord(text)
  if (!record) return failure(500, 'bad_record', `The final record of ${contract.kind} task ${taskId} is unreadable.`)
  sameCall(parent, group, i, record)
  if (finalState(record) !== 'succeeded') {
    return failure(record.status_code, record.error?.type ?? 'failed', record.error?.message ?? record.result)
  }
  const parsed = contract.output.safeParse(decodeResult(record))
  if (parsed.success) return { value: parsed.data }
  // A foreign worker says nothing of the content: its text is taken as it is where that fits the kind's result, else as JSON.
  const asJson = contract.output.safeParse(decodeResult({ ...record, content_type: 'application/json' }))
  if (asJson.success) return { value: asJson.data }
  return failure(500, 'invalid_output', `The result of ${contract.kind} task ${taskId} does not fit its kind.`)
}

/** A foreign record says neither kind nor payload: there is nothing to compare. */
function sameCall(
  parent: Parent,
  group: CallGroup,
  i: number,
  before: { kind?: string; step?: string; payload?: unknown },
): void {
  if (group.first + i >= parent.before) return
  const was = callBefore(group, i, before)
  if (was === null) return
  throw mismatch(parent, group.first + i, was, `${group.contract.kind} with payload #${i} of its group`)
}

/** What the call was, when it was another one. */
function callBefore(
  { contract, payloads }: CallGroup,
  i: number,
  { kind, step, payload }: { kind?: string; step?: string; payload?: unknown },
): string | null {
  if (step !== undefined) return `step "${step}"`
  if (kind !== undefined && kind !== contract.kind) return kind
  if (payload === undefined) return null
  const shown = (value: unknown) => JSON.stringify(redact(contract, value))
  return shown(payload) === shown(payloads[i]) ? null : `${kind} with another payload`
}

/** The recorded result of a step or sleep as JSON, or null when it has none yet. */
export async function loadStep(broker: Broker, parent: Parent, n: number, name: string): Promise<string | null> {
  if (n >= parent.calls) return null
  const [stored] = await broker.get([childId(parent.id, n)])
  if (!stored) return null
  const before = stored.record === null ? null : readRecord(stored.record)
  if (before?.step === name) return before.result
  throw mismatch(parent, n, before?.step === undefined ? 'a call' : `step "${before.step}"`, `step "${name}"`)
}

/** The history's record of a step or sleep. */
export function stepRecord(parent: Parent, n: number, name: string, json: string) {
  const record: FinalRecord = { result: json, status_code: 200, content_type: 'application/json', step: name }
  return { id: childId(parent.id, n), record: JSON.stringify(record) }
}

/**
 * What a stuck run asks of the store, in parts, each an outcome: new sleeps and missing children in the order of their numbers. Only the last one
 * parks; there is always one.
 */
export async function* partsOf(
  parent: Parent,
  waiting: readonly (CallGroup | Sleep)[],
  deps: { now: number; keyring: Keyring | null },
): AsyncGenerator<CallOutcome> {
  let children: NewTask[] = []
  let chars = 0
  const sleeps = waiting.filter((entry): entry is Sleep => entry.type === 'sleep')
  const records = sleeps
    .filter((sleep) => !sleep.stored)
    .map((sleep) => {
      sleep.until ??= deps.now + sleep.ms
      sleep.stored = true
      parent.calls = Math.max(parent.calls, sleep.first + 1)
      parent.steps++
      return stepRecord(parent, sleep.first, 'sleep', String(sleep.until))
    })
  const part = (park: boolean): CallOutcome => ({
    type: 'call',
    ...{ children, records: records.splice(0, PART_TASKS), calls: parent.calls, steps: parent.steps, park },
    wakeAt: park && sleeps.length > 0 ? Math.min(...sleeps.map((sleep) => sleep.until ?? deps.now)) : null,
  })
  while (records.length > PART_TASKS) yield part(false)
  for (const group of waiting) {
    if (group.type !== 'call') continue
    for (const i of group.missing) {
      const { contract, payloads } = group
      const hasSecrets = contract.secrets.length > 0
      const payload = hasSecrets ? await sealed(parent, group, i, deps.keyring) : payloads[i]
      const child = newChild(parent, group, i, payload, deps.now)
      if (children.length >= PART_TASKS || (children.length > 0 && chars + child.envelope.length > PART_CHARS)) {
        yield part(false)
        children = []
        chars = 0
      }
      children.push(child)
      chars += child.envelope.length
      parent.calls = Math.max(parent.calls, group.first + i + 1)
    }
    group.missing = []
  }
  yield part(true)
}

function newChild(
  parent: Parent,
  { contract: { kind }, first, options }: CallGroup,
  i: number,
  payload: unknown,
  createdAt: number,
): NewTask {
  const id = childId(parent.id, first + i)
  const ref = { id: parent.id, kind: parent.kind }
  const priority = options.priority ?? parent.priority
  // Field by field: a fan-out does this for every child.
  const envelope: Envelope = { task_id: id, kind, payload, created_at: createdAt }
  if (priority !== 'normal') envelope.priority = priority
  if (options.maxAttempts !== undefined) envelope.max_attempts = options.maxAttempts
  envelope.parent = ref
  if (parent.traceparent !== undefined) envelope.traceparent = parent.traceparent
  const text = encodeEnvelope(envelope)
  limitSize(text, () => `The payload of ${kind} task ${id}`)
  return { id, kind, priority, parent: ref, envelope: text }
}

async function sealed(
  parent: Parent,
  { contract, first, payloads }: CallGroup,
  i: number,
  keyring: Keyring | null,
): Promise<unknown> {
  const id = childId(parent.id, first + i)
  if (!keyring) {
    throw new PermanentError(
      `This worker cannot call ${contract.kind} for task ${id}: it has no key to seal secrets with. Set TASKER_SECRET or TASKER_SECRET_FILE.`,
      { code: 'no_secret' },
    )
  }
  return sealPayload(keyring, contract, id, payloads[i])
}
