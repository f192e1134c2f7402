import type { Broker, Claimed, Outcome } from '#shared/broker/broker.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import { type Keyring, openPayload, SEALED_PREFIX } from '#shared/runtime/seal.ts'
import { type Contract, parsePayload, secretsIn } from '#shared/task/define.ts'
import { ChildFailed, InvalidInput, PermanentError, RetryLater, RunAborted, TaskerError } from '#shared/task/errors.ts'
import { maskSecrets } from '#shared/task/mask.ts'
import { buildRecord, readEnvelope } from '#shared/task/record.ts'
import { backoffMs, mayRetry } from '#shared/task/retry.ts'
import { type Envelope, expiryOf } from '#shared/task/task.ts'
import { limitSize, loadStep, type Parent, partsOf, replay, stepRecord } from './history.ts'
import type { Implementation } from './implement.ts'
import { Run, type RunPorts } from './run.ts'

/** Characters of an error's message that are kept. */
const MAX_MESSAGE = 10_000

/** Parked runs that are kept in memory at most; the oldest is dropped, and begins anew from history. */
const MAX_PARKED = 10_000

export interface ExecutorDeps {
  readonly broker: Broker
  readonly implementations: ReadonlyMap<string, Implementation>
  readonly keyring: Keyring | null
  readonly clock: Clock
  readonly random: () => number
  /** Settles an outcome while the task goes on; false when it was refused. */
  readonly commit: (outcome: Outcome) => Promise<boolean>
  /** Whether a large fan-out may go on to its next part; if not, its task is given back, and goes on from there when it is claimed again. */
  readonly mayGoOn: () => boolean
}

/** A claimed task that is being run. */
export interface Execution {
  readonly claimed: Claimed
  /** When its time is up. */
  readonly timeoutAt: number
  /** How it ended; null when there is nothing to report, since the task is no longer ours. At once for a handler that awaits nothing. */
  readonly outcome: Outcome | null | Promise<Outcome | null>
  /** Stops it: `timeout` counts as a failed attempt, `stopping` gives the task back, and after `lease_lost` and `cancelled` nothing is reported. */
  abort(reason: RunAborted): void
  progress(): { done: number; total: number } | undefined
}

export interface Executor {
  execute(claimed: Claimed): Execution
  /** Keeps a parked run if its outcome was accepted, else forgets it. */
  parked(id: string, accepted: boolean): void
}

/** The pipeline that turns claimed tasks into outcomes: read, validate, unseal, run, and judge how it ended. */
export function createExecutor(deps: ExecutorDeps): Executor {
  const seats = new Map<string, Seat>()
  return {
    execute: (claimed) => new ClaimedRun(deps, seats, claimed),
    parked(id, accepted) {
      if (!accepted) seats.delete(id)
    },
  }
}

/** A run and what changes with each lease of its task. */
class Seat implements RunPorts {
  run: Run | null = null
  claimed: Claimed
  readonly parent: Parent
  readonly #deps: ExecutorDeps
  /** Store calls of one task go one after the other: a settle takes one outcome of each. */
  #calls: Promise<unknown> | null = null
  /** Set while the run is parked: a step that begins meanwhile waits for the next lease. */
  #parked: PromiseWithResolvers<void> | null = null
  #closed = false

  constructor(deps: ExecutorDeps, claimed: Claimed, envelope: Envelope) {
    const { id, kind, calls, steps } = claimed
    this.#deps = deps
    this.claimed = claimed
    const { priority = 'normal', traceparent } = envelope
    this.parent = { id, kind, priority, traceparent, before: calls, calls, steps }
  }

  /** Whether this claim goes on where the run was parked. */
  fits({ attempt, calls, steps, envelope }: Claimed): boolean {
    const { parent, claimed } = this
    return (
      claimed.attempt === attempt && parent.calls === calls && parent.steps === steps && claimed.envelope === envelope
    )
  }

  resume(claimed: Claimed): void {
    this.claimed = claimed
    this.#parked?.resolve()
    this.#parked = null
  }

  /** Resolves when nothing of this task is on its way to the store. */
  async park(): Promise<void> {
    await this.#calls
    this.#parked = Promise.withResolvers()
  }

  /** Lets nothing more of this run go to the store, and resolves when nothing is on its way: what ends it must not meet a step of it in one settle. */
  close(): Promise<unknown> | null {
    this.#closed = true
    return this.#calls
  }

  /** Settles a part of what the run asks for, after which it goes on; a refusal ends it. */
  commit(outcome: () => Outcome): Promise<void> {
    if (this.#closed) return Promise.reject(new RunAborted('stopping', `This run of ${this.claimed.id} is over.`))
    const result = (this.#calls ?? Promise.resolve()).then(async () => {
      const { id, kind } = this.claimed
      if (await this.#deps.commit(outcome())) return
      const lost = new RunAborted(
        'lease_lost',
        `${kind} task ${id} went to another worker, was cancelled, or was deleted.`,
      )
      this.run?.abort(lost)
      throw lost
    })
    this.#calls = result.catch(() => undefined)
    return result
  }

  async loadStep(n: number, name: string): Promise<string | null> {
    await this.#parked?.promise
    return loadStep(this.#deps.broker, this.parent, n, name)
  }

  async storeStep(n: number, name: string, json: string): Promise<void> {
    limitSize(json, () => `The result of step "${name}" of task ${this.claimed.id}`)
    await this.#parked?.promise
    await this.commit(() => {
      const { parent } = this
      parent.calls = Math.max(parent.calls, n + 1)
      parent.steps++
      const { id, kind, token } = this.claimed
      const records = [stepRecord(parent, n, name, json)]
      const { calls, steps } = parent
      return { id, kind, token, type: 'call', children: [], records, calls, steps, park: false, wakeAt: null }
    })
  }

  emit(chunk: string): void {
    void this.#deps.broker.emit([{ id: this.claimed.id, chunk }]).catch(() => undefined)
  }
}

class ClaimedRun implements Execution {
  readonly claimed: Claimed
  readonly timeoutAt: number
  readonly outcome: Outcome | null | Promise<Outcome | null>
  readonly #deps: ExecutorDeps
  readonly #seats: Map<string, Seat>
  readonly #implementation: Implementation | undefined
  readonly #envelope: Envelope | null
  #seat: Seat | null = null
  #payload: unknown
  #aborted: RunAborted | null = null
  /** What it ended with is known, and perhaps on its way to the store: nothing can stop it any more. */
  #over = false

  constructor(deps: ExecutorDeps, seats: Map<string, Seat>, claimed: Claimed) {
    this.#deps = deps
    this.#seats = seats
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
    this.#seat?.run?.abort(this.#aborted)
  }

  progress(): { done: number; total: number } | undefined {
    return this.#seat?.run?.progress
  }

  #start(): Outcome | null | Promise<Outcome | null> {
    const problem = refuse(this.claimed, this.#envelope, this.#implementation?.contract)
    if (problem || !this.#envelope || !this.#implementation) return this.#failed(problem)
    const { contract } = this.#implementation
    try {
      if (contract.secrets.length > 0) return this.#unseal(contract, this.#envelope)
      return this.#run(parsePayload(contract, this.#envelope.payload))
    } catch (error) {
      return this.#failed(error)
    }
  }

  async #unseal(contract: Contract, envelope: Envelope): Promise<Outcome | null> {
    try {
      return await this.#run(await unsealed(contract, envelope, this.#deps.keyring))
    } catch (error) {
      return this.#failed(error)
    }
  }

  #run(payload: unknown): Outcome | null | Promise<Outcome | null> {
    if (!this.#implementation || !this.#envelope) return null
    this.#payload = payload
    const { claimed } = this
    const seat = this.#takeSeat(this.#envelope)
    this.#seat = seat
    seat.run ??= new Run(this.#implementation, { id: claimed.id, attempt: claimed.attempt, payload }, seat)
    if (this.#aborted) seat.run.abort(this.#aborted)
    const { finished } = seat.run
    if (finished?.type !== 'returned') return this.#follow(seat, seat.run)
    seat.close()
    return this.#succeeded(finished.value)
  }

  /** Goes on with the handler until it ends, or can go no further and is parked. */
  async #follow(seat: Seat, run: Run): Promise<Outcome | null> {
    const { broker, clock, keyring, mayGoOn } = this.#deps
    try {
      for (;;) {
        const progress = await run.advance()
        if (progress.type === 'returned') {
          await seat.close()
          return this.#succeeded(progress.value)
        }
        if (progress.type === 'threw') throw progress.error
        if (await replay(broker, seat.parent, run.waiting(), clock.now())) continue
        for await (const part of partsOf(seat.parent, run.waiting(), { now: clock.now(), keyring })) {
          if (part.park) {
            await seat.park()
            if (this.#aborted) throw this.#aborted
            this.#over = true
            this.#keep(seat)
            return { ...this.#lease(), ...part }
          }
          await seat.commit(() => ({ ...this.#lease(), ...part }))
          if (!mayGoOn()) this.abort(new RunAborted('stopping', `The worker of task ${seat.claimed.id} stops.`))
          if (this.#aborted) throw this.#aborted
        }
      }
    } catch (error) {
      await seat.close()
      return this.#failed(error)
    }
  }

  /** The seat of the parked run that this claim goes on with, or a new one. */
  #takeSeat(envelope: Envelope): Seat {
    const { claimed } = this
    const kept = this.#seats.get(claimed.id)
    if (kept) this.#seats.delete(claimed.id)
    if (!kept?.fits(claimed)) return new Seat(this.#deps, claimed, envelope)
    kept.resume(claimed)
    return kept
  }

  #keep(seat: Seat): void {
    this.#seats.set(seat.claimed.id, seat)
    const [oldest] = this.#seats.keys()
    if (this.#seats.size > MAX_PARKED && oldest !== undefined) this.#seats.delete(oldest)
  }

  #lease() {
    const { id, kind, token } = this.claimed
    return { id, kind, token, parent: this.#envelope?.parent }
  }

  #succeeded(value: unknown): Outcome {
    const { kind, id } = this.claimed
    const parsed = this.#implementation?.contract.output.safeParse(value)
    if (!parsed?.success) {
      throw new PermanentError(`The result of ${kind} task ${id} does not fit its kind.`, { code: 'invalid_output' })
    }
    return this.#end({ state: 'succeeded', statusCode: 200, result: parsed.data })
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
    const { id, kind, token } = this.claimed
    const lease = { id, kind, token, parent: this.#envelope?.parent }
    if (code === 'stopping') return { ...lease, type: 'release' }
    const failure = judge(error)
    const contract = this.#implementation?.contract
    const rules = contract?.retry
    const maxAttempts = this.#envelope?.max_attempts ?? rules?.maxAttempts ?? 1
    const { attempt } = this.claimed
    if (!failure.permanent && rules && mayRetry(attempt, maxAttempts)) {
      const random = this.#deps.random()
      const waitMs = backoffMs({ attempt, rules, random, retryAfterMs: failure.afterMs })
      return { ...lease, type: 'retry', at: this.#deps.clock.now() + waitMs }
    }
    const secrets = contract && this.#payload !== undefined ? secretsIn(contract, this.#payload) : []
    const message = maskSecrets(failure.message, secrets)
    const { type, statusCode } = failure
    return this.#end({ state: 'failed', statusCode, error: { type, message: message.slice(0, MAX_MESSAGE) } })
  }

  #end(how: Pick<Parameters<typeof buildRecord>[0], 'state' | 'statusCode' | 'result' | 'error'>): Outcome {
    const { state, statusCode, result, error } = how
    const { id, kind, token, attempt, startedAt } = this.claimed
    const { calls, steps } = this.#seat?.parent ?? this.claimed
    const finishedAt = this.#deps.clock.now()
    const envelope = this.#envelope ?? { task_id: id, payload: undefined }
    const contract = this.#implementation?.contract
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
      startedAt,
      finishedAt,
    })
    if (state === 'succeeded') limitSize(record.result, () => `The result of ${kind} task ${id}`)
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

/** Why a claimed task cannot be run at all. */
function refuse(claimed: Claimed, envelope: Envelope | null, contract: Contract | undefined): PermanentError | null {
  const { id, kind } = claimed
  if (!contract)
    return new PermanentError(`This worker has no handler for ${kind} (task ${id}).`, { code: 'unknown_kind' })
  if (!envelope || envelope.task_id !== id) {
    return new PermanentError(`The envelope of ${kind} task ${id} names its id in two ways.`, {
      statusCode: 422,
      code: 'bad_envelope',
    })
  }
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
    const what = `${contract.kind} task ${id} has sealed secrets, and this worker has no key`
    throw new PermanentError(`${what}: set TASKER_SECRET or TASKER_SECRET_FILE.`, { code: 'no_secret' })
  }
  return parsePayload(contract, keyring ? await openPayload(keyring, contract, id, payload) : payload)
}

/** What was thrown, in words. A handler may throw anything: what has no text, or an error whose message is none. */
function textOf(thrown: unknown): string {
  try {
    const said: unknown = thrown instanceof Error ? thrown.message : thrown
    return typeof said === 'string' ? said : (JSON.stringify(said) ?? String(said))
  } catch {
    return 'The handler threw something that has no text.'
  }
}

/** What an error says of the task: whether it may be tried again, when at the earliest, and what to tell. */
function judge(error: unknown) {
  const message = textOf(error)
  const known = { type: error instanceof TaskerError ? error.code : 'error', message, afterMs: null as number | null }
  if (error instanceof InvalidInput) {
    const details = error.issues.map((issue) => `${issue.path}: ${issue.message}`).join('; ')
    return { ...known, message: `${message} ${details}`, statusCode: 422, permanent: true }
  }
  if (error instanceof PermanentError || error instanceof ChildFailed)
    return { ...known, statusCode: error.statusCode, permanent: true }
  if (error instanceof RetryLater)
    return { ...known, statusCode: error.statusCode, afterMs: error.afterMs, permanent: false }
  if (error instanceof RunAborted) return { ...known, statusCode: 504, permanent: false }
  return { ...known, statusCode: 500, permanent: false }
}
