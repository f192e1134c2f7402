import { StateConflict, TaskNotFound } from '#shared/task/errors.ts'
import { readRecord } from '#shared/task/record.ts'
import { encodeEnvelope, type FinalRecord, finalState, rootOf } from '#shared/task/task.ts'
import type { NewTask } from './broker.ts'
import { endedOf, historyOf, removeFailedChildren, type TreeDeps } from './tree.ts'
import { contractOf } from './view.ts'

/**
 * Queues a failed or cancelled root again, from attempt 1. Its children that succeeded keep their results; the others are forgotten and called anew.
 *
 * @throws TaskNotFound when the id is unknown; StateConflict when the task is a child, is live, has succeeded, had
 * secrets (they were wiped when it ended), or was ended by a foreign worker, which keeps no payload.
 */
export async function retryTask(deps: TreeDeps, id: string): Promise<void> {
  const { broker } = deps
  const [stored] = await broker.get([id])
  if (!stored) throw new TaskNotFound(id)
  if (stored.live)
    throw new StateConflict(`Task ${id} is ${stored.live.state}: only a failed or cancelled one is retried.`)
  const record = readRecord(stored.record)
  const task = taskOf(deps, id, record)
  // The record of a cancelled task is older than the truth: its run may have called more children before it was cancelled.
  const history = await historyOf(broker, id, { calls: record?.calls ?? 0, steps: record?.steps ?? 0 })
  await removeFailedChildren(deps, { id, calls: history.calls })
  const retried = await broker.retry([{ ...task, history }])
  if (!retried.includes(id)) throw new StateConflict(`Task ${id} was retried or deleted by someone else just now.`)
}

function taskOf({ contracts }: TreeDeps, id: string, record: FinalRecord | null): NewTask {
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
  return { id, kind: contract.kind, priority: priority ?? 'normal', envelope, ended: endedOf(record) }
}
