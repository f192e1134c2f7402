import type { Broker, CallOutcome, NewTask, Stored } from '#shared/broker/broker.ts'
import { type Keyring, sealPayload } from '#shared/runtime/seal.ts'
import type { Slices } from '#shared/runtime/slices.ts'
import { fromStored, parseAtOnce } from '#shared/task/define.ts'
import { ChildFailed, HistoryMismatch, KeyMissing } from '#shared/task/errors.ts'
import { decodeResult, readEnvelope, readRecord } from '#shared/task/record.ts'
import { childId, type FinalRecord, finalState, type ParentRef, type Priority } from '#shared/task/task.ts'
import type { Thrown } from '#shared/task/thrown.ts'
import { type CallEntry, type Entry, PREPARE_MS, type Result, type SleepEntry, type StepEntry } from './entries.ts'
import type { Order } from './order.ts'

/** A fan-out goes to the store in parts of so many children or characters, so that no call grows over about half a megabyte. */
const PART_TASKS = 500
const PART_CHARS = 400_000
/** About how much longer an envelope is than its payload. */
const ENVELOPE_CHARS = 250

/** Entries that one read asks for; the store stops at about a megabyte. */
const READ_ENTRIES = 4_000

/** The task whose history it is. */
export interface Parent {
  readonly id: string
  readonly kind: string
  readonly priority: Priority
  readonly traceparent: string | undefined
}

export interface HistoryDeps {
  readonly get: Broker['get']
  readonly keyring: Keyring | null
  readonly slices: Slices
  readonly now: () => number
  /** Called before each read. @throws when the run may ask no more. */
  readonly mayRead: () => void
}

/** What the store keeps of one run: results of children, steps and sleeps, by number. Fills in what entries wait for, and writes what a run has to say. */
export class History {
  readonly parent: Parent
  /** Length of the history when this run began. What comes after it was called by this very run, and cannot be another call. */
  readonly before: number
  /** Length of the history in the store, and the steps and sleeps in it. */
  calls: number
  steps: number
  readonly #deps: HistoryDeps
  /** Read before anybody asked. */
  readonly #ahead = new Map<number, Stored>()
  /** What is to be written with the next change. */
  #records: { id: string; record: string }[] = []
  /** Characters of results that a run was given. */
  chars = 0

  constructor(parent: Parent, length: { calls: number; steps: number }, deps: HistoryDeps) {
    this.parent = parent
    this.before = length.calls
    this.calls = length.calls
    this.steps = length.steps
    this.#deps = deps
  }

  /**
   * Fills in what the store knows of entries: of those that it was not asked for, and `again` of children that had not ended. An entry that is not
   * the one of an earlier run ends the task.
   *
   * @throws HistoryMismatch naming the call.
   */
  look(open: readonly Entry[], again: boolean): Promise<void> | null {
    const unprepared = open.filter((entry) => entry.type === 'call' && !entry.prepare(0))
    if (unprepared.length > 0) return this.#prepare(unprepared).then(() => this.look(open, again) ?? undefined)
    const numbers: number[] = []
    const owners: Entry[] = []
    for (const entry of open) {
      const isNew = !entry.isLooked
      if (!isNew && !(again && entry.type === 'call' && entry.left > 0 && !entry.failure)) continue
      entry.isLooked = true
      for (let i = 0; i < entry.size; i++) {
        const n = entry.first + i
        if (entry.type === 'call' && entry.hasEnded(i)) continue
        if (n >= this.calls) {
          if (entry.type === 'call' && isNew) entry.missing.push(i)
          continue
        }
        const known = this.#ahead.get(n)
        if (known) {
          this.#ahead.delete(n)
          this.#fill(entry, n, known)
          continue
        }
        numbers.push(n)
        owners.push(entry)
      }
    }
    return numbers.length > 0 ? this.#read(numbers, owners) : null
  }

  async #prepare(entries: readonly Entry[]): Promise<void> {
    for (const entry of entries) {
      while (entry.type === 'call' && !entry.prepare(performance.now() + PREPARE_MS)) await this.#deps.slices.turn()
    }
  }

  async #read(numbers: number[], owners: Entry[]): Promise<void> {
    const { get, slices, mayRead } = this.#deps
    const load = (from: number) => {
      mayRead()
      const asked = numbers.slice(from, from + READ_ENTRIES)
      // What follows is likely to be asked for next.
      const last = asked.at(-1) ?? 0
      for (let n = last + 1; n < this.before && asked.length < READ_ENTRIES && numbers.length < READ_ENTRIES; n++) {
        asked.push(n)
      }
      const stored = get(
        asked.map((n) => childId(this.parent.id, n)),
        { some: true },
      )
      // Nobody awaits it when the part before it fails the task.
      stored.catch(() => undefined)
      return { asked, stored }
    }
    let from = 0
    let next: ReturnType<typeof load> | null = load(0)
    while (next) {
      const { asked } = next
      const stored: (Stored | null)[] = await next.stored
      const wanted = Math.min(stored.length, numbers.length - from)
      // The next part is on its way while this one is read.
      next = from + wanted < numbers.length ? load(from + wanted) : null
      for (let i = 0; i < wanted; i++) {
        const owner = owners[from + i]
        if (owner) this.#fill(owner, numbers[from + i] ?? 0, stored[i] ?? null)
        if (slices.isOver()) await slices.turn()
      }
      if (this.#ahead.size > READ_ENTRIES) this.#ahead.clear()
      for (let i = wanted; i < stored.length; i++) {
        const one = stored[i]
        if (one?.record) this.#ahead.set(asked[i] ?? 0, one)
      }
      from += wanted
    }
  }

  #fill(entry: Entry, n: number, stored: Stored | null): void {
    const { failure } = entry
    if (stored === null) {
      if (entry.type === 'call' && !failure) {
        // One that was there before is called again: somebody has forgotten it.
        entry.missing.push(n - entry.first)
        entry.isSent = false
      }
      return
    }
    if (stored.live) {
      if (entry.type !== 'call' || failure) throw this.#mismatch(n, `a call of ${stored.live.kind}`, entry.label)
      this.#live(entry, n, stored.live.envelope)
      return
    }
    const record = readRecord(stored.record)
    this.chars += record?.result.length ?? 0
    if (record?.step !== undefined || entry.type !== 'call') this.#own(entry, n, record)
    else entry.end(n - entry.first, this.#resultOf(entry, n, record), record?.finished_at ?? this.#deps.now())
  }

  #live(entry: CallEntry, n: number, envelope: string): void {
    if (n >= this.before) return
    const read = readEnvelope(envelope)
    this.#sameCall(entry, n, read ?? {})
    entry.group = read?.parent?.group
  }

  /** An entry that is no task: a step, a sleep, or a call that was refused. */
  #own(entry: Entry, n: number, record: FinalRecord | null): void {
    const isFailure = record?.status === 'failed'
    if (record?.step !== entry.label || (entry.type === 'call' && !isFailure)) {
      throw this.#mismatch(n, record?.step === undefined ? 'a call' : `step "${record.step}"`, entry.label)
    }
    if (entry.type === 'sleep') {
      entry.until = Number(record.result)
      if (!Number.isFinite(entry.until)) throw this.#mismatch(n, `step "${record.step}"`, entry.name)
      return
    }
    if (isFailure) entry.failure = { ...(record.error as Thrown), status_code: record.status_code }
    else if (entry.type === 'step') entry.json = record.result
    if (entry.type === 'step') entry.state = 'ended'
    entry.isRecorded = true
    entry.completedAt = record.finished_at ?? 0
  }

  #resultOf(entry: CallEntry, n: number, record: FinalRecord | null): Result {
    const { contract } = entry
    const taskId = childId(this.parent.id, n)
    const failed = (statusCode: number, type: string, message: string) => ({
      error: new ChildFailed({ taskId, kind: contract.kind, statusCode, type, message }),
    })
    if (!record) return failed(500, 'bad_record', `The final record of ${contract.kind} task ${taskId} is unreadable.`)
    this.#sameCall(entry, n, record)
    if (finalState(record) !== 'succeeded') {
      return failed(record.status_code, record.error?.type ?? 'failed', record.error?.message ?? record.result)
    }
    const result = decodeResult(record)
    // Ours was parsed when it was made. A foreign one says nothing of its content: its text is taken as it is where that fits the kind's result, else as JSON.
    if (record.attempt !== undefined) return { value: fromStored(contract.json.output, result) }
    for (const value of [result, decodeResult({ ...record, content_type: 'application/json' })]) {
      const parsed = parseAtOnce(contract, 'output', value)
      if (parsed.success) return { value: parsed.data }
    }
    return failed(500, 'invalid_output', `The result of ${contract.kind} task ${taskId} does not fit its kind.`)
  }

  /** A foreign record says neither kind nor payload: there is nothing to compare. */
  #sameCall(entry: CallEntry, n: number, before: { kind?: string; payload?: unknown; given?: string }): void {
    if (n >= this.before) return
    const { kind, payload } = before
    const { contract } = entry
    if (kind !== undefined && kind !== contract.kind) throw this.#mismatch(n, `a call of ${kind}`, entry.label)
    if (payload === undefined || entry.isSamePayload(n - entry.first, before)) return
    throw this.#mismatch(n, `a ${entry.label} with another payload`, `${entry.label} with this one`)
  }

  #mismatch(n: number, before: string, now: string): HistoryMismatch {
    return mismatch(this.parent, n, before, now)
  }

  /** Keeps the result of a step, or the failure of an entry that the handler goes on from, for the next change. */
  keep(entry: StepEntry | CallEntry, finishedAt: number | null): void {
    const { failure, first } = entry
    const record: FinalRecord = failure
      ? { result: failure.message, status_code: failure.status_code, status: 'failed', error: failure }
      : { result: (entry.type === 'step' && entry.json) || 'null', status_code: 200, content_type: 'application/json' }
    if (finishedAt !== null) record.finished_at = finishedAt
    record.step = entry.label
    this.#add(first, record)
  }

  /** Sets the end of a new sleep, and keeps it for the next change. */
  begin(sleep: SleepEntry): void {
    if (sleep.until !== null) return
    sleep.until = this.#deps.now() + sleep.ms
    const record = { result: String(sleep.until), status_code: 200, content_type: 'application/json' }
    this.#add(sleep.first, { ...record, step: sleep.label })
  }

  #add(n: number, record: FinalRecord): void {
    this.#records.push({ id: childId(this.parent.id, n), record: JSON.stringify(record) })
    this.calls = Math.max(this.calls, n + 1)
    this.steps++
  }

  /** Whether anything is kept that the store does not have. */
  get hasRecords(): boolean {
    return this.#records.length > 0
  }

  /** What the run has to say as one outcome; null when it is too much for one, or must be sealed. */
  change(open: ReadonlyMap<number, Entry>, order: Order, park: boolean): CallOutcome | null {
    let [tasks, chars] = [0, charsOf(this.#records)]
    const unsent: CallEntry[] = []
    for (const entry of open.values()) {
      if (entry.type !== 'call' || entry.isSent || entry.failure) continue
      if (entry.contract.secrets.length > 0) return null
      unsent.push(entry)
      tasks += entry.missing.length
      chars += entry.chars + entry.size * ENVELOPE_CHARS
    }
    if (tasks > PART_TASKS || this.#records.length > PART_TASKS || chars > PART_CHARS) return null
    const children: NewTask[] = []
    for (const entry of unsent) {
      const childOf = this.#children(entry)
      for (const i of entry.missing.sort((a, b) => a - b)) {
        const { text, given } = entry.payloadOf(i)
        children.push(childOf(i, text, given))
        this.calls = Math.max(this.calls, entry.first + i + 1)
      }
      entry.missing = []
      entry.isSent = true
    }
    const records = this.#records
    this.#records = []
    return this.#outcome(children, records, { open, order, park })
  }

  #outcome(
    children: readonly NewTask[],
    records: { id: string; record: string }[],
    { open, order, park }: { open: ReadonlyMap<number, Entry>; order: Order; park: boolean },
  ): CallOutcome {
    const wakeAt = park ? earliestOf(open) : null
    const awaits = park ? awaitsOf(open) : null
    const { calls, steps } = this
    return { type: 'call', children, records, calls, steps, order: order.text, park, wakeAt, awaits }
  }

  /**
   * What the run has to say, in parts, each an outcome: records, and missing children in the order of their numbers. There is always a last one, and only
   * that one parks.
   */
  async *parts(open: ReadonlyMap<number, Entry>, order: Order, park: boolean): AsyncGenerator<CallOutcome> {
    const part = (children: NewTask[], isLast: boolean): CallOutcome => {
      const records = this.#records.splice(0, isLast ? this.#records.length : PART_TASKS)
      return this.#outcome(children, records, { open, order, park: park && isLast })
    }
    while (this.#records.length > PART_TASKS || charsOf(this.#records) > PART_CHARS) yield part([], false)
    let children: NewTask[] = []
    let chars = 0
    for (const entry of open.values()) {
      if (entry.type !== 'call' || entry.isSent || entry.failure) continue
      const childOf = this.#children(entry)
      const isSealed = entry.contract.secrets.length > 0
      for (const i of entry.missing.sort((a, b) => a - b)) {
        const { text, given } = entry.payloadOf(i)
        const child = childOf(i, isSealed ? await this.#sealed(entry, i, text) : text, given)
        if (children.length >= PART_TASKS || (children.length > 0 && chars + child.envelope.length > PART_CHARS)) {
          yield part(children, false)
          children = []
          chars = 0
        }
        children.push(child)
        chars += child.envelope.length
        this.calls = Math.max(this.calls, entry.first + i + 1)
      }
      entry.missing = []
      entry.isSent = true
    }
    yield part(children, true)
  }

  /** Makes the children of one entry from their payloads as text. What they share is written once. */
  #children(entry: CallEntry): (i: number, text: string, given: string | undefined) => NewTask {
    const { contract, options, first } = entry
    const { parent } = this
    const priority = options.priority ?? parent.priority
    const group = entry.group ?? undefined
    const ref: ParentRef = { id: parent.id, kind: parent.kind, ...(group === undefined ? {} : { group }) }
    const rest = JSON.stringify({
      created_at: this.#deps.now(),
      ...(priority === 'normal' ? {} : { priority }),
      ...(options.maxAttempts === undefined ? {} : { max_attempts: options.maxAttempts }),
      parent: ref,
      ...(parent.traceparent === undefined ? {} : { traceparent: parent.traceparent }),
    }).slice(1)
    const begin = `{"task_id":${JSON.stringify(parent.id).slice(0, -1)}.`
    const middle = `","v":1,"kind":"${contract.kind}","payload":`
    return (i, text, given) => {
      const digest = given === undefined ? '' : `"given":"${given}",`
      const envelope = `${begin}${first + i}${middle}${text},${digest}${rest}`
      return { id: childId(parent.id, first + i), kind: contract.kind, priority, parent: ref, envelope }
    }
  }

  /** The text of a payload with its secrets sealed for one child. */
  async #sealed(entry: CallEntry, i: number, text: string): Promise<string> {
    const { keyring } = this.#deps
    const { contract } = entry
    const id = childId(this.parent.id, entry.first + i)
    if (!keyring) {
      throw new KeyMissing(`a key to seal the secrets of ${contract.kind} task ${id} with`)
    }
    return JSON.stringify(await sealPayload(keyring, contract, id, JSON.parse(text)))
  }
}

/** When the first of the open sleeps is over; null where there is none. */
export function earliestOf(open: ReadonlyMap<number, Entry>): number | null {
  let earliest: number | null = null
  for (const entry of open.values()) {
    if (entry.type !== 'sleep' || entry.until === null || entry.completedAt !== null) continue
    earliest = Math.min(earliest ?? entry.until, entry.until)
  }
  return earliest
}

/** What a run awaits in the terms of the store; null when it is one call or map alone. */
function awaitsOf(open: ReadonlyMap<number, Entry>): CallOutcome['awaits'] {
  const [only] = open.values()
  if (open.size === 1 && only?.type === 'call' && only.group === undefined) return null
  let alone = 0
  const groups: number[] = []
  for (const entry of open.values()) {
    if (entry.type !== 'call' || entry.completedAt !== null) continue
    if (typeof entry.group === 'number') groups.push(entry.group)
    else alone += entry.left
  }
  return { alone, groups }
}

function charsOf(records: readonly { record: string }[]): number {
  let chars = 0
  for (const { record } of records) chars += record.length
  return chars
}

/** The error for a call that is not the one of the run before. */
export function mismatch(task: { id: string; kind: string }, n: number, before: string, now: string): HistoryMismatch {
  return new HistoryMismatch(
    `Call ${n} of ${task.kind} task ${task.id} was ${before} in an earlier run, and is ${now} now (${childId(task.id, n)}). ` +
      'A handler must make the same calls in the same order each time: keep time, randomness and other side effects in ctx.step.',
  )
}
