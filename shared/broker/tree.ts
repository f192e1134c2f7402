import { StateConflict, TaskNotFound } from '#shared/task/errors.ts'
import { cancelledRecord, readEnvelope, readRecord } from '#shared/task/record.ts'
import { childId, type Envelope, expiryOf, type FinalRecord, finalState } from '#shared/task/task.ts'
import { adopt } from './adopt.ts'
import type { Broker, Cancellation, Ended, Live, Removal, Stored } from './broker.ts'
import { inParts } from './parts.ts'
import { attemptOf, type Contracts, contractOf } from './view.ts'

/**
 * Tasks that are read and written in one call, unless they are large: it bounds the memory, whatever the size of a
 * tree.
 */
const CHUNK = 500
const MAX_CHUNK = 16_000

export interface TreeDeps {
  broker: Broker
  contracts: Contracts
  /** Milliseconds since the epoch. */
  now: () => number
}

/**
 * Ends a live task as cancelled, and then its descendants, from the top down: a task without its live record can make no more
 * children. A task that is final, or has just become so, is left as it is.
 *
 * @throws TaskNotFound when the id is unknown; StateConflict when the task is final.
 */
export async function cancelTree(deps: TreeDeps, id: string): Promise<void> {
  const [stored] = await deps.broker.get([id])
  if (!stored) throw new TaskNotFound(id)
  const [cancelled] = stored.live ? await cancelLive(deps, [stored]) : []
  if (!cancelled) throw new StateConflict(`Task ${id} has already ended: only an unfinished task can be cancelled.`)
  await cancelBelow(deps, id, cancelled.calls)
}

/**
 * Forgets a task with all its descendants. A live one is cancelled first. Records go from the leaves up and the root last, so that what a crash
 * leaves behind is found again from the root. Calling it twice is harmless.
 *
 * @throws TaskNotFound when the id is unknown.
 */
export async function removeTree(deps: TreeDeps, id: string): Promise<void> {
  const [stored] = await deps.broker.get([id])
  if (!stored) throw new TaskNotFound(id)
  await removeTrees(deps, [stored])
}

/** What was ended as cancelled, and how many children it called; null when that is not known. */
interface Stopped {
  id: string
  calls: number | null
}

/**
 * Cancels what is live of these, and gives those that have ended so. A call whose answer was lost is sent again, and then ends
 * nothing more: what it left alone is looked at, lest the children of what it had ended before be forgotten.
 */
async function cancelLive({ broker, contracts, now }: TreeDeps, tasks: readonly Stored[]): Promise<Stopped[]> {
  const at = now()
  const cancellations = tasks.flatMap(({ id, live }) => (live ? [cancellationOf(id, live, contracts, at)] : []))
  if (cancellations.length === 0) return []
  const answers = await broker.cancel(cancellations)
  const others = answers.flatMap(({ id, cancelled }) => (cancelled ? [] : [id]))
  const stopped: Stopped[] = answers.filter(({ cancelled }) => cancelled)
  for await (const left of inParts(broker, others)) {
    for (const stored of left) if (stored && isCancelled(stored)) stopped.push({ id: stored.id, calls: null })
  }
  return stopped
}

/** Whether a task failed, was cancelled, or was left unfinished. */
export function hasFailed({ record }: Stored): boolean {
  const read = record === null ? null : readRecord(record)
  return read === null || finalState(read) !== 'succeeded'
}

function isCancelled({ record }: Stored): boolean {
  const read = record === null ? null : readRecord(record)
  return read !== null && finalState(read) === 'cancelled'
}

async function cancelBelow(deps: TreeDeps, id: string, calls: number | null): Promise<void> {
  const known = calls ?? (await lengthOf(deps.broker, id, 0))
  for await (const children of childrenOf(deps.broker, id, known)) {
    for (const child of await cancelLive(deps, children)) await cancelBelow(deps, child.id, child.calls)
  }
}

/** Forgets several tasks as `removeTree` does, together. */
export async function removeTrees(deps: TreeDeps, tasks: readonly Stored[]): Promise<void> {
  if (tasks.length === 0) return
  const calls = new Map<string, number>()
  const uncertain = new Map<string, number>()
  for (const { id, record } of tasks) {
    const read = record === null ? null : readRecord(record)
    calls.set(id, read?.calls ?? 0)
    if (!tellsItsCalls(read)) uncertain.set(id, read?.calls ?? 0)
  }
  for (const task of await cancelLive(deps, tasks)) {
    calls.set(task.id, task.calls ?? 0)
    if (task.calls !== null) uncertain.delete(task.id)
    await cancelBelow(deps, task.id, task.calls)
  }
  for (const id of await longerThanRecorded(deps.broker, uncertain)) {
    calls.set(id, await lengthOf(deps.broker, id, calls.get(id) ?? 0))
  }
  for await (const children of childrenOfAll(deps.broker, calls)) await removeTrees(deps, children)
  // Those that were live have ended meanwhile.
  const live = tasks.flatMap(({ id, live }) => (live ? [id] : []))
  const ended = new Map<string, Removal>()
  for await (const found of inParts(deps.broker, live)) {
    for (const task of found) if (task) ended.set(task.id, removalOf(task))
  }
  const foreign = await deps.broker.remove(tasks.map((task) => ended.get(task.id) ?? removalOf(task)))
  if (foreign.length === 0) return
  // What foreign workers have just ended may have children that only its live value told of, and goes on until it is taken over.
  await adopt(deps.broker, foreign, deps.now())
  const adopted = foreign.map(({ id }) => id)
  for await (const found of inParts(deps.broker, adopted)) {
    await removeTrees(
      deps,
      found.filter((task) => task !== null),
    )
  }
}

/** Numbers behind the known end of a history at which it is looked for: some have no entry, as a step may be under way while a later call is stored. */
const GAP = 8

/** Whether a record tells how many children there are: that of a cancelled task is made before it is cancelled, and a foreign one does not tell. */
function tellsItsCalls(record: FinalRecord | null): boolean {
  return (
    record !== null && (record.step !== undefined || (record.attempt !== undefined && record.status !== 'cancelled'))
  )
}

/** Tasks that called more children than is known of them. */
async function longerThanRecorded(broker: Broker, calls: ReadonlyMap<string, number>): Promise<string[]> {
  const ids = [...calls.keys()]
  const longer = new Set<string>()
  for (let i = 0; i < ids.length; i += CHUNK / GAP) {
    const some = ids.slice(i, i + CHUNK / GAP)
    const next = some.flatMap((id) => idsOfCalls(id, calls.get(id) ?? 0, (calls.get(id) ?? 0) + GAP))
    let j = 0
    for await (const found of inParts(broker, next)) {
      for (const child of found) {
        if (child) longer.add(some[Math.floor(j / GAP)] ?? '')
        j++
      }
    }
  }
  return [...longer]
}

/** How long a task's history is, of which so much is known: it ends where a whole chunk is unknown. */
export async function lengthOf(broker: Broker, id: string, known: number): Promise<number> {
  let calls = known
  for (let from = calls; ; from += CHUNK) {
    let n = from
    for await (const found of inParts(broker, idsOfCalls(id, from, from + CHUNK))) {
      for (const child of found) {
        n++
        if (child) calls = n
      }
    }
    if (calls <= from) return calls
  }
}

/**
 * The children that are known, in parts, the last child first: what is left of a removal that was interrupted then
 * begins at number 0, where it is looked for.
 */
export async function* childrenOf(broker: Broker, id: string, calls: number): AsyncGenerator<Stored[]> {
  let size = CHUNK
  for (let end = calls; end > 0; ) {
    const start = Math.max(0, end - size)
    let isGone = true
    for await (const found of knownOf(broker, idsOfCalls(id, start, end).toReversed())) {
      isGone &&= found.length === 0
      yield found
    }
    // What an earlier removal has done is passed over in long steps.
    size = isGone ? Math.min(2 * size, MAX_CHUNK) : CHUNK
    end = start
  }
}

/** The same of several tasks, of which so many calls are known: small histories together. */
async function* childrenOfAll(broker: Broker, calls: ReadonlyMap<string, number>): AsyncGenerator<Stored[]> {
  const some: string[] = []
  for (const [id, known] of calls) {
    if (known > CHUNK) yield* childrenOf(broker, id, known)
    else some.push(...idsOfCalls(id, 0, known).toReversed())
    if (some.length >= CHUNK) yield* knownOf(broker, some.splice(0))
  }
  yield* knownOf(broker, some)
}

async function* knownOf(broker: Broker, ids: readonly string[]): AsyncGenerator<Stored[]> {
  for await (const found of inParts(broker, ids)) yield found.filter((child) => child !== null)
}

function idsOfCalls(id: string, from: number, to: number): string[] {
  return Array.from({ length: to - from }, (_, index) => childId(id, from + index))
}

function cancellationOf(id: string, live: Live, contracts: Contracts, at: number): Cancellation {
  const envelope: Envelope = readEnvelope(live.envelope) ?? { task_id: id, payload: null }
  const record = cancelledRecord({
    contract: contractOf(contracts, live.kind),
    // A foreign envelope does not tell its kind: its queue does.
    envelope: { ...envelope, kind: live.kind },
    attempt: attemptOf(live),
    calls: live.calls,
    steps: live.steps,
    order: live.order,
    startedAt: live.startedAt,
    finishedAt: at,
  })
  return {
    id,
    kind: live.kind,
    parent: envelope.parent,
    record: JSON.stringify(record),
    endedAt: at,
    expiresAt: expiryOf(record),
  }
}

function removalOf({ id, record }: Stored): Removal {
  const read = record === null ? null : readRecord(record)
  return { id, ended: read && endedOf(read) }
}

/** How the task of a record ended; null when the record does not tell of what kind it is. */
export function endedOf(record: FinalRecord): Ended | null {
  const { kind, finished_at: at = null } = record
  return kind === undefined ? null : { kind, state: finalState(record), at, expiresAt: expiryOf(record) }
}
