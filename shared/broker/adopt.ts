import type { FailedAttempt } from '#shared/task/attempts.ts'
import { beginningOf, readEnvelope, readRecord } from '#shared/task/record.ts'
import { expiryOf, finalState } from '#shared/task/task.ts'
import type { Broker, Foreign, Outcome } from './broker.ts'

/**
 * Takes over results that foreign workers wrote, so that waiting parents go on. Their records are given what is known of the tasks; what is not known
 * stays as the foreign worker said it.
 */
export async function adopt(broker: Broker, foreign: readonly Foreign[], at: number): Promise<void> {
  if (foreign.length > 0) await broker.settle(foreign.map((one) => outcomeOf(one, at)))
}

function outcomeOf({ id, kind, record, envelope, ...length }: Foreign, at: number): Outcome {
  const sent = readEnvelope(envelope)
  const told = readRecord(record)
  // A text that is no record stands for a failure.
  const written: object = told === null ? { result: beginningOf(record), status_code: 500 } : JSON.parse(record)
  const known = {
    kind,
    created_at: sent?.created_at ?? told?.created_at,
    finished_at: at,
    // Nobody becomes a child by saying so.
    parent: sent?.parent,
    retention_s: sent?.retention_s ?? told?.retention_s,
    attempts: sent?.attempts,
    attempt: told?.attempt ?? nextAttempt(sent?.attempts),
    calls: length.calls || told?.calls,
    steps: length.calls ? length.steps : told?.steps,
    order: (length.calls ? length.order : told?.order) || undefined,
  }
  return {
    ...{ type: 'adopt', id, kind, token: '', parent: sent?.parent, endedAt: at },
    state: told === null ? 'failed' : finalState(told),
    record: JSON.stringify({ ...written, ...known }),
    expiresAt: expiryOf(known),
  }
}

/** The attempt of a foreign worker that took the task after others had failed. */
function nextAttempt(failed: readonly FailedAttempt[] | undefined): number | undefined {
  const last = failed?.at(-1)
  return last && last.attempt + 1
}
