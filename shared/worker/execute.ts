import type { Broker, CallOutcome, Claimed, Outcome } from '#shared/broker/broker.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import { type Keyring, openPayload } from '#shared/runtime/seal.ts'
import type { Slices } from '#shared/runtime/slices.ts'
import { type FailedAttempt, failedAttempt, noteAttempt } from '#shared/task/attempts.ts'
import {
  type Contract,
  fromStored,
  parseAtOnce,
  parsePayload,
  redact,
  SEALED_PREFIX,
  secretsIn,
} from '#shared/task/define.ts'
import {
  ChildFailed,
  InvalidInput,
  KeyMissing,
  PermanentError,
  RetryLater,
  RunAborted,
  TaskerError,
} from '#shared/task/errors.ts'
import { judgeForeign } from '#shared/task/foreign.ts'
import { copyJson, toJson } from '#shared/task/json.ts'
import { createMask, type Mask, NO_MASK } from '#shared/task/mask.ts'
import { buildRecord, readEnvelope } from '#shared/task/record.ts'
import { backoffMs, mayRetry, type RetryRules } from '#shared/task/retry.ts'
import { type Envelope, expiryOf, isOurs, type ResumePoint } from '#shared/task/task.ts'
import { MAX_MESSAGE, MAX_NAME, statusCodeOf, textOf } from '#shared/task/thrown.ts'
import { Course, type Lease as CourseLease } from './course.ts'
import type { Implementation } from './implement.ts'
import { limitSize, limitText } from './limits.ts'
import { ParkedRuns } from './parked.ts'
import { Run } from './run.ts'
import type { Turns } from './turns.ts'

export interface ExecutorDeps {
  readonly broker: Broker
  readonly implementations: ReadonlyMap<string, Implementation>
  readonly keyring: Keyring | null
  readonly clock: Clock
  readonly slices: Slices
  readonly turns: Turns
  readonly random: () => number
  /** How often a run whose steps go on looks for the ends of children, in ms. */
  readonly lookMs: number
  /** Told of a task that is put off, since this process lacks a key for it. */
  readonly onKeyMissing: (task: Claimed, error: KeyMissing) => void
}

/** What a run asks of the drain that claimed its task. */
export interface RunStore {
  /** Settles an outcome while the task goes on; false when it was refused. */
  commit(outcome: Outcome): Promise<boolean>
  /** Whether a run may ask more of the store; if not, its task is given back, and goes on from there when it is claimed again. */
  mayGoOn(): boolean
  /** Makes a call again until the store answers. */
  insist<T>(call: () => Promise<T>): Promise<T>
}

/** A claimed task that is being run. */
export interface Execution {
  readonly claimed: Claimed
  /** When its time is up. */
  readonly timeoutAt: number
  /** How it ended; null when there is nothing to report, since the task is no longer ours. At once for a handler that awaits nothing. */
  readonly outcome: Outcome | null | Promise<Outcome | null>
  /** Why this attempt failed, when it is to be followed by another. */
  readonly failure: FailedAttempt | null
  /** Stops it: `timeout` counts as a failed attempt, `stopping` gives the task back, and after `lease_lost` and `cancelled` nothing is reported. */
  abort(reason: RunAborted): void
  progress(): { done: number; total: number } | undefined
}

export interface Executor {
  execute(claimed: Claimed, store: RunStore): Execution
  /** Keeps a parked run if its outcome was accepted, else forgets it. */
  parked(id: string, accepted: boolean): void
  /** Forgets runs that were parked long ago. */
  tidy(): void
}

/** The pipeline that turns claimed tasks into outcomes: read, validate, unseal, run, and judge how it ended. */
export function createExecutor(deps: ExecutorDeps): Executor {
  const kept = new ParkedRuns()
  const emit = (id: string, chunk: string) => void deps.broker.emit([{ id, chunk }]).catch(() => undefined)
  const shared: Shared = { ...deps, kept, emit }
  return {
    execute: (claimed, store) => new ClaimedRun(shared, claimed, store),
    parked(id, accepted) {
      if (!accepted) kept.drop(id)
    },
    tidy: () => kept.dropOld(deps.clock.now()),
  }
}

interface Shared extends ExecutorDeps {
  readonly kept: ParkedRuns
  readonly emit: (id: string, chunk: string) => void
}

class ClaimedRun implements Execution {
  readonly claimed: Claimed
  readonly timeoutAt: number
  readonly outcome: Outcome | null | Promise<Outcome | null>
  failure: FailedAttempt | null = null
  readonly #deps: Shared
  readonly #store: RunStore
  readonly #implementation: Implementation | undefined
  readonly #envelope: Envelope | null
  #isOurs = false
  #run: Run | null = null
  #course: Course | null = null
  /** Hides the secrets of the payload, as it came: the handler may change it. */
  #mask: Mask = NO_MASK
  #aborted: RunAborted | null = null
  /** It is parked, and the store perhaps about to hear of it: nothing can stop it any more. */
  #over = false

  constructor(deps: Shared, claimed: Claimed, store: RunStore) {
    this.#deps = deps
    this.#store = store
    this.claimed = claimed
    this.#implementation = deps.implementations.get(claimed.kind)
    this.#envelope = readEnvelope(claimed.envelope)
    const timeoutMs = this.#envelope?.timeout_ms ?? this.#implementation?.contract.timeoutMs ?? 0
    this.timeoutAt = deps.clock.now() + timeoutMs
    this.outcome = this.#start()
  }

  abort(reason: RunAborted): void {
    if (this.#over) return
    this.#aborted ??= reason
    this.#run?.abort(this.#aborted)
  }

  progress(): { done: number; total: number } | undefined {
    return this.#run?.progress
  }

  #start(): Outcome | null | Promise<Outcome | null> {
    const { claimed } = this
    this.#isOurs = isOurs(claimed)
    const problem = refuse(claimed, this.#envelope, this.#implementation?.contract, this.#isOurs)
    if (problem || !this.#envelope || !this.#implementation) return this.#failed(problem)
    const { contract } = this.#implementation
    try {
      if (contract.secrets.length > 0) return this.#unseal(contract, this.#envelope)
      return this.#begin(this.#envelope, this.#read(contract, this.#envelope.payload))
    } catch (error) {
      return this.#failed(error)
    }
  }

  async #unseal(contract: Contract, envelope: Envelope): Promise<Outcome | null> {
    try {
      const payload = await unsealed(contract, envelope, this.#deps.keyring)
      this.#mask = createMask(secretsIn(contract, payload))
      return await this.#deps.turns.start(() => this.#begin(envelope, this.#read(contract, payload)))
    } catch (error) {
      return this.#failed(error)
    }
  }

  /** The payload for the handler, which may change it. Ours was parsed where it came in. */
  #read(contract: Contract, payload: unknown): unknown {
    if (!this.#isOurs) return parsePayload(contract, payload)
    return fromStored(contract.json.input, copyJson(payload))
  }

  #begin(envelope: Envelope, payload: unknown): Outcome | null | Promise<Outcome | null> {
    if (!this.#implementation) return null
    const { claimed } = this
    const mask = this.#mask
    const parked = this.#deps.kept.take(claimed)
    if (parked) {
      parked.resume(this.#courseLease())
      return this.#follow(parked)
    }
    const run = new Run(this.#implementation, claimed, { value: payload, mask }, this.#deps)
    this.#run = run
    // Nearly all handlers await nothing.
    if (run.ended?.type === 'returned' && !run.unawaited) return this.#succeeded(run.ended.value)
    return this.#follow(new Course(this.#deps, run, { lease: this.#courseLease(), envelope, mask }))
  }

  #courseLease(): CourseLease {
    const { claimed } = this
    const { id, kind, token } = claimed
    const store = this.#store
    const { broker } = this.#deps
    const stop = (reason: RunAborted) => {
      this.abort(reason)
      return this.#aborted ?? reason
    }
    return {
      claimed,
      async commit({ type, children, records, calls, steps, order, park, wakeAt, awaits }) {
        // Without spreading: this is done for every step.
        const outcome = { id, kind, token, type, children, records, calls, steps, order, park, wakeAt, awaits }
        if (await store.commit(outcome)) return
        const what = `${kind} task ${id} went to another worker, was cancelled, or was deleted.`
        throw stop(new RunAborted('lease_lost', what))
      },
      get: (ids, given) => store.insist(() => broker.get(ids, given)),
      mayAsk: () => store.mayGoOn(),
      mayGoOn() {
        if (!store.mayGoOn()) throw stop(new RunAborted('stopping', `The worker of task ${id} stops.`))
      },
    }
  }

  /** Goes on with the handler until it ends, or can go no further and is parked. */
  async #follow(course: Course): Promise<Outcome | null> {
    const { run } = course
    this.#run = run
    this.#course = course
    if (this.#aborted) run.abort(this.#aborted)
    try {
      const change = await course.advance()
      if (change && !this.#aborted) return this.#park(course, change)
      if (this.#aborted) throw this.#aborted
      if (run.ended?.type === 'threw') {
        if (this.#mayRetry(judge(run.ended.error), run.ended.error)) await course.finish()
        throw run.ended.error
      }
      const { unawaited } = run
      if (unawaited) {
        const { kind, id } = this.claimed
        const what = `The handler of ${kind} task ${id} returned without waiting for ${unawaited.name}, which was not started`
        throw new PermanentError(`${what}: await it.`, { code: 'not_awaited' })
      }
      return this.#succeeded(run.ended?.value)
    } catch (error) {
      return this.#failed(error instanceof KeyMissing ? await this.#giveUp(course, error) : error)
    }
  }

  /** Of a run that can go no further here: stores what its steps have done. Gives what kept it from that, else the reason. */
  async #giveUp(course: Course, reason: KeyMissing): Promise<unknown> {
    try {
      await course.finish()
    } catch (error) {
      return error
    }
    const what = `Task ${this.claimed.id} waits for a key, and this run of it is given up.`
    course.run.abort(new RunAborted('parked', what))
    return reason
  }

  #park(course: Course, change: CallOutcome): Outcome {
    const { run, claimed } = course
    this.#over = true
    // What it does beside waiting hears that it holds no slot any more: this run is given up.
    if (run.hasSignal) run.abort(new RunAborted('parked', `Task ${claimed.id} waits, and this run of it is given up.`))
    else this.#deps.kept.keep(course, this.#deps.clock.now())
    return { ...this.#lease(), ...change }
  }

  #lease() {
    const { id, kind, token } = this.claimed
    return { id, kind, token, parent: this.#envelope?.parent }
  }

  #succeeded(value: unknown): Outcome {
    const { kind, id } = this.claimed
    const contract = this.#implementation?.contract
    const parsed = contract && parseAtOnce(contract, 'output', value)
    if (!parsed?.success) {
      throw new PermanentError(`The result of ${kind} task ${id} does not fit its kind.`, { code: 'invalid_output' })
    }
    const result: unknown = parsed.data === undefined ? null : parsed.data
    if (!contract?.json.output.isPlain) requireJson(result, () => `The result of ${kind} task ${id}`)
    return this.#end({ state: 'succeeded', statusCode: 200, result: this.#mask.value(result) })
  }

  #failed(error: unknown): Outcome | null {
    try {
      return this.#judged(error)
    } catch {
      const message = 'The handler failed with something that cannot be stored.'
      return this.#end({ state: 'failed', statusCode: 500, error: { type: 'error', message } })
    }
  }

  #judged(error: unknown): Outcome | null {
    const code = this.#aborted?.code
    if (code === 'lease_lost' || code === 'cancelled') return null
    if (code === 'stopping') return { ...this.#lease(), type: 'release' }
    if (error instanceof KeyMissing) return this.#putOff(error)
    const judged = judge(error)
    const rules = this.#implementation?.contract.retry
    if (rules && this.#mayRetry(judged, error)) return this.#retry(judged, rules)
    const { clip } = this.#mask
    const failure = { type: clip(judged.type, MAX_NAME), message: clip(judged.message, MAX_MESSAGE) }
    return this.#end({
      ...{ state: 'failed', statusCode: judged.statusCode },
      ...{ error: failure, resume: this.#resumePoint(error) },
    })
  }

  /**
   * Gives the task back for a process that has its key, no attempt used up. It waits a while out of the queue, lest it be claimed here again and again: as long as it
   * has been there, within limits.
   */
  #putOff(error: KeyMissing): Outcome {
    const { claimed } = this
    this.#deps.onKeyMissing(claimed, error)
    const now = this.#deps.clock.now()
    const waitMs = Math.min(Math.max(now - (this.#envelope?.created_at ?? now), MIN_PUT_OFF_MS), MAX_PUT_OFF_MS)
    const { calls, steps } = this.#course?.history ?? claimed
    const order = this.#course?.order.text ?? claimed.order
    const history = { calls, steps, order, children: [], records: [] }
    return { ...this.#lease(), ...history, type: 'call', park: true, wakeAt: now + waitMs, awaits: null }
  }

  /** The attempt failed and another follows: its error goes with the envelope. */
  #retry({ type, message, statusCode: status_code, afterMs: retryAfterMs }: Judgement, rules: RetryRules): Outcome {
    const { attempt, envelope } = this.claimed
    const at = this.#deps.clock.now()
    const waitMs = backoffMs({ attempt, rules, random: this.#deps.random(), retryAfterMs })
    this.failure = failedAttempt({ attempt, type, message, status_code, at }, this.#mask.clip)
    const noted = noteAttempt(envelope, this.#envelope?.attempts, this.failure)
    return { ...this.#lease(), type: 'retry', at: at + waitMs, envelope: noted }
  }

  #mayRetry({ permanent }: Judgement, error: unknown): boolean {
    if (permanent || this.#course?.isHistory(error)) return false
    const maxAttempts = this.#envelope?.max_attempts ?? this.#implementation?.contract.retry.maxAttempts ?? 1
    return mayRetry(this.claimed.attempt, maxAttempts)
  }

  /** Where a retry goes on from. */
  #resumePoint(error: unknown): ResumePoint {
    const point = this.#course?.resumePoint(this.#aborted ? undefined : error)
    if (point) return point
    const { calls } = this.#course?.history ?? this.claimed
    const order = this.#course?.order.text ?? this.claimed.order
    return { calls, ...(order === '' ? {} : { order }), keep: [[0, calls]] }
  }

  /** The envelope for the record: what in the payload quotes a secret is masked. */
  #shown(contract: Contract | undefined): Envelope {
    const envelope = this.#envelope ?? { task_id: this.claimed.id, payload: undefined }
    if (!contract || this.#mask === NO_MASK) return envelope
    return { ...envelope, payload: this.#mask.value(redact(contract, envelope.payload)) }
  }

  #end(
    how: Pick<Parameters<typeof buildRecord>[0], 'state' | 'statusCode' | 'result' | 'error'> & {
      resume?: ResumePoint | undefined
    },
  ): Outcome {
    const { state, statusCode, result, error, resume } = how
    const { id, kind, token, attempt, startedAt } = this.claimed
    const { calls, steps } = this.#course?.history ?? this.claimed
    const finishedAt = this.#deps.clock.now()
    const contract = this.#implementation?.contract
    const envelope = this.#shown(contract)
    // Without spreading, here and below: this is done for every task.
    const record = buildRecord({
      state,
      statusCode,
      result,
      error,
      contract,
      kind,
      envelope,
      attempt,
      calls,
      steps,
      order: this.#course?.order.text ?? this.claimed.order,
      resume,
      startedAt,
      finishedAt,
    })
    if (state === 'succeeded') {
      const limit = record.content_type === undefined ? limitText : limitSize
      limit(record.result, () => `The result of ${kind} task ${id}`)
    }
    return {
      id,
      kind,
      token,
      parent: envelope.parent,
      type: 'end',
      state,
      record: JSON.stringify(record),
      endedAt: finishedAt,
      expiresAt: expiryOf(record),
    }
  }
}

/** How long a task at least and at most is put off whose key is missing, in ms. */
const MIN_PUT_OFF_MS = 5_000
const MAX_PUT_OFF_MS = 300_000

/** Why a claimed task cannot be run at all. */
function refuse(
  claimed: Claimed,
  envelope: Envelope | null,
  contract: Contract | undefined,
  isOurs: boolean,
): PermanentError | null {
  const { id, kind } = claimed
  const unfit = (why: string) =>
    new PermanentError(`The envelope of ${kind} task ${id} ${why}.`, { statusCode: 422, code: 'bad_envelope' })
  if (!contract)
    return new PermanentError(`This worker has no handler for ${kind} (task ${id}).`, { code: 'unknown_kind' })
  const { issues } = isOurs ? { issues: null } : judgeForeign('envelope', claimed.envelope)
  if (issues) return unfit(`does not fit: ${issues.map(({ path, message }) => `${path}: ${message}`).join('; ')}`)
  if (!envelope || envelope.task_id !== id) return unfit('names its id in two ways')
  const maxAttempts = envelope.max_attempts ?? contract.retry.maxAttempts
  if (claimed.attempt > maxAttempts) {
    return new PermanentError(
      `${kind} task ${id} was given up after ${maxAttempts} attempts: its worker died, or stopped answering, in the last one.`,
      { code: 'worker_lost' },
    )
  }
  return null
}

async function unsealed(contract: Contract, envelope: Envelope, keyring: Keyring | null): Promise<unknown> {
  const { task_id: id, payload } = envelope
  if (!keyring && secretsIn(contract, payload).some((value) => value.startsWith(SEALED_PREFIX))) {
    throw new KeyMissing(`a key for the secrets of ${contract.kind} task ${id}`)
  }
  return keyring ? openPayload(keyring, contract, id, payload) : payload
}

function requireJson(value: unknown, what: () => string): void {
  try {
    toJson(value, what)
  } catch (error) {
    throw new PermanentError(textOf(error), { code: 'invalid_output' })
  }
}

interface Judgement {
  type: string
  message: string
  statusCode: number
  afterMs: number | null
  permanent: boolean
}

/** What an error says of the task: whether it may be tried again, when at the earliest, and what to tell. */
function judge(error: unknown, depth = 0): Judgement {
  const message = textOf(error)
  const type = error instanceof TaskerError ? String(error.code) : 'error'
  const known: Judgement = { type, message, statusCode: 500, afterMs: null, permanent: false }
  if (error instanceof InvalidInput) {
    const details = error.issues.map((issue) => `${issue.path}: ${issue.message}`).join('; ')
    return { ...known, message: `${message} ${details}`, statusCode: 422, permanent: true }
  }
  if (error instanceof PermanentError || error instanceof ChildFailed)
    return { ...known, statusCode: statusCodeOf(error.statusCode), permanent: true }
  if (error instanceof RetryLater)
    return { ...known, statusCode: statusCodeOf(error.statusCode), afterMs: error.afterMs }
  if (error instanceof RunAborted) return { ...known, statusCode: 504 }
  // Of `Promise.any`: it can help to try again if it can help one of them.
  if (error instanceof AggregateError && error.errors.length > 0 && depth < 3) {
    const all = error.errors.slice(0, 1_000).map((one: unknown) => judge(one, depth + 1))
    const [first = known] = all
    const details = all.slice(0, 3).map((one) => one.message)
    const isPermanent = all.every(({ permanent }) => permanent)
    return { ...first, message: `${message}: ${details.join('; ')}`, permanent: isPermanent }
  }
  return known
}
