import type { Broker, Claimed, EndOutcome, Outcome, RetryOutcome } from '#shared/broker/broker.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import { type Keyring, openPayload } from '#shared/runtime/seal.ts'
import { type Contract, parsePayload, SEALED, secretsIn } from '#shared/task/define.ts'
import { ChildFailed, InvalidInput, PermanentError, RetryLater, RunAborted, TaskerError } from '#shared/task/errors.ts'
import { buildRecord, readEnvelope } from '#shared/task/record.ts'
import { backoffMs, mayRetry } from '#shared/task/retry.ts'
import { DEFAULT_RETENTION_S, type Envelope, expiryOf } from '#shared/task/task.ts'
import { limitSize, loadStep, type Parent, partsOf, replay, stepRecord } from './history.ts'
import type { Implementation } from './implement.ts'
import { type Run, startRun } from './run.ts'

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
  /** How it ended; null when there is nothing to report, since the task is no longer ours. */
  readonly outcome: Promise<Outcome | null>
  /** Stops it: `timeout` counts as a failed attempt, `stopping` gives the task back, and after `lease_lost` and `cancelled` nothing is reported. */
  abort(reason: RunAborted): void
  progress(): { done: number; total: number } | undefined
}

export interface Executor {
  execute(claimed: Claimed): Execution
  /** Keeps a parked run if its outcome was accepted, else forgets it. */
  parked(id: string, accepted: boolean): void
}

/** A run and what changes with each lease of its task. */
interface Seat {
  run: Run | null
  claimed: Claimed
  parent: Parent
  /** Store calls of one task go one after the other: a settle takes one outcome of each. */
  calls: Promise<unknown>
  /** Resolves while the lease is held; a step that begins while the run is parked waits for it. */
  held: PromiseWithResolvers<void>
}

/** The pipeline that turns claimed tasks into outcomes: read, validate, unseal, run, and judge how it ended. */
export function createExecutor(deps: ExecutorDeps): Executor {
  const { broker, clock, keyring } = deps
  const seats = new Map<string, Seat>()

  function execute(claimed: Claimed): Execution {
    let run: Run | null = null
    let aborted: RunAborted | null = null
    const implementation = deps.implementations.get(claimed.kind)
    const envelope = readEnvelope(claimed.envelope)
    const contract = implementation?.contract

    function abort(reason: RunAborted): void {
      aborted ??= reason
      run?.abort(aborted)
    }

    async function outcome(): Promise<Outcome | null> {
      const problem = refuse(claimed, envelope, contract)
      if (!implementation || !envelope || problem) return ended(problem ?? new PermanentError('Unreachable.'))
      const seat = takeSeat(claimed, envelope)
      let payload: unknown
      try {
        payload = await openedPayload(implementation.contract, envelope, keyring)
        run = seat.run ??= startRun(
          implementation,
          { id: claimed.id, attempt: claimed.attempt, payload },
          portsOf(seat, deps),
        )
        if (aborted) run.abort(aborted)
        for (;;) {
          const progress = await run.advance()
          if (progress.type === 'returned') return succeeded(progress.value, seat)
          if (progress.type === 'threw') throw progress.error
          if (await replay(broker, seat.parent, run.waiting(), clock.now())) continue
          for await (const part of partsOf(seat.parent, run.waiting(), { now: clock.now(), keyring })) {
            const call: Outcome = { ...lease(), ...part }
            if (!part.park) {
              await inTurn(seat, () => commit(deps, seat, call))
              if (!deps.mayGoOn()) abort(new RunAborted('stopping', `The worker of task ${claimed.id} stops.`))
              if (aborted) throw aborted
            } else {
              await seat.calls
              keep(seat)
              return call
            }
          }
        }
      } catch (error) {
        return ended(error, payload, seat)
      }
    }

    function lease() {
      return { id: claimed.id, kind: claimed.kind, token: claimed.token, parent: envelope?.parent }
    }

    function succeeded(value: unknown, seat: Seat): Outcome {
      const parsed = implementation?.contract.output.safeParse(value)
      if (!parsed?.success) {
        throw new PermanentError(`The result of ${claimed.kind} task ${claimed.id} does not fit its kind.`, {
          code: 'invalid_output',
        })
      }
      return end({ state: 'succeeded', statusCode: 200, result: parsed.data }, seat)
    }

    function ended(error: unknown, payload?: unknown, seat?: Seat): Outcome | null {
      if (aborted?.code === 'lease_lost' || aborted?.code === 'cancelled') return null
      if (aborted?.code === 'stopping') return { ...lease(), type: 'release' }
      const failure = judge(error)
      const { retry } = contract ?? {}
      const maxAttempts = envelope?.max_attempts ?? retry?.maxAttempts ?? 1
      if (!failure.permanent && retry && mayRetry(claimed.attempt, maxAttempts)) {
        const wait = backoffMs({
          attempt: claimed.attempt,
          rules: retry,
          random: deps.random(),
          retryAfterMs: failure.afterMs,
        })
        const again: RetryOutcome = { type: 'retry', at: clock.now() + wait }
        return { ...lease(), ...again }
      }
      const secrets = contract && payload !== undefined ? secretsIn(contract, payload) : []
      const message = secrets
        .reduce((text, value) => text.replaceAll(value, SEALED), failure.message)
        .slice(0, MAX_MESSAGE)
      return end({ state: 'failed', statusCode: failure.statusCode, error: { type: failure.type, message } }, seat)
    }

    function end(
      how: Pick<Parameters<typeof buildRecord>[0], 'state' | 'statusCode' | 'result' | 'error'>,
      seat?: Seat,
    ): Outcome {
      const finishedAt = clock.now()
      const record = buildRecord({
        ...how,
        contract,
        envelope: { ...(envelope ?? { task_id: claimed.id, payload: undefined }), kind: claimed.kind },
        attempt: claimed.attempt,
        calls: seat?.parent.calls ?? claimed.calls,
        steps: seat?.parent.steps ?? claimed.steps,
        startedAt: claimed.startedAt,
        finishedAt,
      })
      if (how.state === 'succeeded') limitSize(record.result, `The result of ${claimed.kind} task ${claimed.id}`)
      const expiresAt = expiryOf(finishedAt, envelope?.retention_s ?? DEFAULT_RETENTION_S)
      const outcome: EndOutcome = { type: 'end', state: how.state, record: JSON.stringify(record), expiresAt }
      return { ...lease(), ...outcome }
    }

    return {
      claimed,
      timeoutAt: clock.now() + (envelope?.timeout_ms ?? contract?.timeoutMs ?? 60_000),
      outcome: outcome(),
      abort,
      progress: () => run?.progress(),
    }
  }

  /** The seat of the parked run that this claim goes on with, or a new one. */
  function takeSeat(claimed: Claimed, envelope: Envelope): Seat {
    const kept = seats.get(claimed.id)
    seats.delete(claimed.id)
    const { calls, steps, attempt } = claimed
    if (kept?.run && kept.claimed.attempt === attempt && kept.parent.calls === calls && kept.parent.steps === steps) {
      kept.claimed = claimed
      kept.held.resolve()
      return kept
    }
    const held = Promise.withResolvers<void>()
    held.resolve()
    const { id, kind } = claimed
    const parent = {
      id,
      kind,
      calls,
      steps,
      priority: envelope.priority ?? 'normal',
      traceparent: envelope.traceparent,
    }
    return { run: null, claimed, parent, calls: Promise.resolve(), held }
  }

  function keep(seat: Seat): void {
    seat.held = Promise.withResolvers()
    seats.set(seat.claimed.id, seat)
    const [oldest] = seats.keys()
    if (seats.size > MAX_PARKED && oldest !== undefined) seats.delete(oldest)
  }

  return {
    execute,
    parked(id, accepted) {
      if (!accepted) seats.delete(id)
    },
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

async function openedPayload(contract: Contract, envelope: Envelope, keyring: Keyring | null): Promise<unknown> {
  const { task_id: id, payload } = envelope
  if (contract.secrets.length === 0) return parsePayload(contract, payload)
  const sealed = secretsIn(contract, payload).some((value) => value.startsWith('sealed:'))
  if (sealed && !keyring) {
    throw new PermanentError(
      `${contract.kind} task ${id} has sealed secrets, and this worker has no key: set TASKER_SECRET or TASKER_SECRET_FILE.`,
      {
        code: 'no_secret',
      },
    )
  }
  return parsePayload(contract, keyring ? await openPayload(keyring, contract, id, payload) : payload)
}

function portsOf(seat: Seat, deps: ExecutorDeps) {
  return {
    async loadStep(n: number, name: string) {
      await seat.held.promise
      return loadStep(deps.broker, seat.parent, n, name)
    },
    async storeStep(n: number, name: string, json: string) {
      limitSize(json, `The result of step "${name}" of task ${seat.claimed.id}`)
      await seat.held.promise
      await inTurn(seat, async () => {
        const { parent, claimed } = seat
        parent.calls = Math.max(parent.calls, n + 1)
        parent.steps++
        await commit(deps, seat, {
          ...{ id: claimed.id, kind: claimed.kind, token: claimed.token, type: 'call' as const },
          ...{ children: [], records: [stepRecord(parent, n, name, json)], calls: parent.calls, steps: parent.steps },
          ...{ park: false, wakeAt: null },
        })
      })
    },
    emit(chunk: string) {
      void deps.broker.emit([{ id: seat.claimed.id, chunk }]).catch(() => undefined)
    },
  }
}

function inTurn<T>(seat: Seat, work: () => Promise<T>): Promise<T> {
  const result = seat.calls.then(work)
  seat.calls = result.catch(() => undefined)
  return result
}

/** Settles an outcome after which the run goes on; a refusal ends it. */
async function commit(deps: ExecutorDeps, seat: Seat, outcome: Outcome): Promise<void> {
  if (await deps.commit(outcome)) return
  const lost = new RunAborted(
    'lease_lost',
    `${outcome.kind} task ${outcome.id} went to another worker, was cancelled, or was deleted.`,
  )
  seat.run?.abort(lost)
  throw lost
}

/** What an error says of the task: whether it may be tried again, when at the earliest, and what to tell. */
function judge(error: unknown) {
  const message = error instanceof Error ? error.message : String(error)
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
