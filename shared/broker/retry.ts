import { StateConflict, TaskNotFound } from '#shared/task/errors.ts'
import { readRecord } from '#shared/task/record.ts'
import { encodeEnvelope, type FinalRecord, finalState, rootOf } from '#shared/task/task.ts'
import type { History, Retry } from './broker.ts'
import { childrenOf, endedOf, hasFailed, historyOf, removeTrees, type TreeDeps } from './tree.ts'
import { type Contracts, contractOf } from './view.ts'

/** How long a task stays reserved for who retries it, should that one die. It goes on for longer while children are forgotten. */
const RESERVED_MS = 60_000

/**
 * Queues a failed or cancelled root again, from attempt 1. Its children that succeeded keep their results; the others are forgotten and called anew. Only one
 * caller at a time does this to a task: the children that another would forget may be those of the run that has begun again.
 *
 * @throws TaskNotFound when the id is unknown; StateConflict when the task is a child, is live, has succeeded, had
 * secrets (they were wiped when it ended), was ended by a foreign worker, which keeps no payload, or is being retried by someone else.
 */
export async function retryTask(deps: TreeDeps, id: string): Promise<void> {
  const { broker } = deps
  await retriable(deps, id)
  let token: string | null = null
  const reserve = async (): Promise<string> => {
    ;[token = null] = await broker.reserve([{ id, token }], RESERVED_MS)
    if (token === null) throw new StateConflict(`Task ${id} is being retried by someone else.`)
    return token
  }
  await reserve()
  // It may have been retried, and have ended anew, before it was reserved.
  const { known, ...task } = await retriable(deps, id)
  // The record of a cancelled task is older than the truth: its run may have called more children before it was cancelled.
  const history = await historyOf(broker, id, known)
  for await (const children of childrenOf(broker, id, history.calls)) {
    const failed = children.filter(hasFailed)
    if (failed.length === 0) continue
    await reserve()
    await removeTrees(deps, failed)
  }
  const retried = await broker.retry([{ ...task, history, token: await reserve() }])
  if (!retried.includes(id)) throw new StateConflict(`Task ${id} was retried or deleted by someone else just now.`)
}

type Retriable = Omit<Retry, 'token' | 'history'> & { known: History }

async function retriable({ broker, contracts }: TreeDeps, id: string): Promise<Retriable> {
  const [stored] = await broker.get([id])
  if (!stored) throw new TaskNotFound(id)
  if (stored.live)
    throw new StateConflict(`Task ${id} is ${stored.live.state}: only a failed or cancelled one is retried.`)
  return taskOf(contracts, id, readRecord(stored.record))
}

function taskOf(contracts: Contracts, id: string, record: FinalRecord | null): Retriable {
  if (record !== null && finalState(record) === 'succeeded') {
    throw new StateConflict(`Task ${id} has succeeded: only a failed or cancelled one is retried.`)
  }
  if (record?.parent) {
    const root = rootOf(id)
    throw new StateConflict(
      `Task ${id} belongs to task ${record.parent.id}, whose history it is. Retry the root ${root}.`,
    )
  }
  const contract = contractOf(contracts, record?.kind)
  if (!contract || !record || record.payload === undefined) {
    throw new StateConflict(`Task ${id} has no payload here, as a foreign worker ended it. Create it again.`)
  }
  if (contract.secrets.length > 0) {
    throw new StateConflict(`The secrets of ${contract.kind} task ${id} were wiped when it ended. Create it again.`)
  }
  const { priority, max_attempts, timeout_ms, retention_s, traceparent, created_at } = record
  const envelope = encodeEnvelope({
    task_id: id,
    kind: contract.kind,
    payload: record.payload,
    ...(created_at === undefined ? {} : { created_at }),
    ...(priority === undefined ? {} : { priority }),
    ...(max_attempts === undefined ? {} : { max_attempts }),
    ...(timeout_ms === undefined ? {} : { timeout_ms }),
    ...(retention_s === undefined ? {} : { retention_s }),
    ...(traceparent === undefined ? {} : { traceparent }),
  })
  const known = { calls: record.calls ?? 0, steps: record.steps ?? 0 }
  return { id, kind: contract.kind, priority: priority ?? 'normal', envelope, known, ended: endedOf(record) }
}
