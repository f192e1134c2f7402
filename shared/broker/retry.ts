import { StateConflict, TaskNotFound } from '#shared/task/errors.ts'
import { readRecord } from '#shared/task/record.ts'
import { encodeEnvelope, type FinalRecord, finalState, type ResumePoint, rootOf } from '#shared/task/task.ts'
import type { Retry, Stored } from './broker.ts'
import { childrenOf, endedOf, hasFailed, lengthOf, removeTrees, type TreeDeps } from './tree.ts'
import { type Contracts, contractOf, isStep } from './view.ts'

/** How long a task stays reserved for who retries it, should that one die. It goes on for longer while children are forgotten. */
const RESERVED_MS = 60_000

/**
 * Queues a failed or cancelled root again, from attempt 1. It goes on from its history as it was before the failure that ended it: that is forgotten, with what came
 * after it. Failures that its handler went on from stay. Children that had not ended, or were cancelled with it, are called again. Only one caller at a time does this
 * to a task: the children that another would forget may be those of the run that has begun again.
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
  const { record, ...task } = await retriable(deps, id)
  // The record of a cancelled task is a little older than its end: its run may have called more children before it was cancelled.
  const length = await lengthOf(broker, id, record.calls ?? 0)
  const resume = record.resume ?? allOf(record, length)
  let steps = 0
  for await (const children of childrenOf(broker, id, length)) {
    const gone = children.filter((child) => isForgotten(child, numberOf(child.id), record, resume))
    steps += children.filter((child) => isStep(child) && !gone.includes(child)).length
    if (gone.length === 0) continue
    await reserve()
    await removeTrees(deps, gone)
  }
  const history = { calls: Math.min(resume.calls, length), steps, order: resume.order ?? '' }
  const retried = await broker.retry([{ ...task, history, token: await reserve() }])
  if (!retried.includes(id)) throw new StateConflict(`Task ${id} was retried or deleted by someone else just now.`)
}

/**
 * Where a record does not tell: a cancelled task goes on from its history as the record tells it, as the order of what came after it is not known. Of one that failed
 * all failures are forgotten.
 */
function allOf({ status, calls = 0, order = '' }: FinalRecord, length: number): ResumePoint {
  return status === 'cancelled' ? { calls, order, keep: [[0, calls]] } : { calls: length, keep: [] }
}

/** Whether a retry does without an entry of the history, and makes it again if the handler still does. */
function isForgotten(child: Stored, n: number, root: FinalRecord, { calls, keep }: ResumePoint): boolean {
  if (n >= calls || child.live) return true
  if (!keep.some(([first, last]) => n >= first && n <= last)) return hasFailed(child)
  // What was cancelled with its root was never told to the handler; what was cancelled before may have been.
  const record = readRecord(child.record)
  return record?.status === 'cancelled' && (record.finished_at ?? 0) >= (root.finished_at ?? 0)
}

function numberOf(id: string): number {
  return Number(id.slice(id.lastIndexOf('.') + 1))
}

type Retriable = Omit<Retry, 'token' | 'history'> & { record: FinalRecord }

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
  const { priority, max_attempts, timeout_ms, retention_s, traceparent, created_at, given } = record
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
    ...(given === undefined ? {} : { given }),
  })
  return { id, kind: contract.kind, priority: priority ?? 'normal', envelope, record, ended: endedOf(record) }
}
