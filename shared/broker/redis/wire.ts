/** How calls to the scripts are written, and their replies read. The other side of each is in the header of its script. */
import { createdAtIn, readEnvelope } from '#shared/task/record.ts'
import { type FinalState, PRIORITIES, type State } from '#shared/task/task.ts'
import type {
  Claim,
  Claimed,
  Ended,
  Foreign,
  KindStats,
  Listed,
  Live,
  NewTask,
  Outcome,
  Stored,
  TaskEvent,
} from '../broker.ts'

export type Arg = string | number

/** Number of a state's key among `kindKeys`, from 1 as in Lua. */
export const KEY_OF: Record<State, number> = {
  queued: 2,
  running: 4,
  delayed: 5,
  waiting: 6,
  succeeded: 7,
  failed: 8,
  cancelled: 9,
}

/** Kinds get numbers as they turn up in a call's arguments; their names become its keys. */
export type KindNumbers = ReturnType<typeof kindNumbers>
export function kindNumbers() {
  const names: string[] = []
  return {
    names,
    number(kind: string): number {
      const known = names.indexOf(kind)
      return known >= 0 ? known + 1 : names.push(kind)
    },
  }
}

export function newTaskArgs(tasks: readonly NewTask[], kinds: KindNumbers): Arg[] {
  const args: Arg[] = [tasks.length]
  for (const { id, kind, priority, dueAt, parent, envelope } of tasks) {
    const head = `${kinds.number(kind)} ${PRIORITIES.indexOf(priority) + 1} ${dueAt ?? '-'}`
    args.push(typeof parent?.group === 'number' ? `${head} ${parent.group}` : head, id, envelope)
  }
  return args
}

/** The tenth word of a live value: see common.lua. */
export function orderWord(order: string): string {
  return order === '' ? '' : ` ${order}`
}

/** What a group of outcomes begins with: see settle.lua. */
function headOf(
  outcome: Pick<Outcome | Ending, 'kind' | 'token' | 'parent' | 'type'>,
  kinds: KindNumbers,
  more: string,
): string {
  const { kind, token, parent, type } = outcome
  const group = parent?.group === undefined ? '' : `:${parent.group}`
  return `${type} ${kinds.number(kind)} ${parent ? kinds.number(parent.kind) : 0}${group} ${more} ${token}`
}

/** Those that end within so many ms of each other share members of their sets: see common.lua. */
const SHARED_MS = 10
const sharedTime = (at: number | null) => (at === null ? '-' : Math.ceil(at / SHARED_MS) * SHARED_MS)

function endOf(end: { state: FinalState; endedAt: number; expiresAt: number | null }): string {
  return `${KEY_OF[end.state]},${sharedTime(end.endedAt)},${sharedTime(end.expiresAt)}`
}

/** How a task ended that is forgotten. */
export function endedArgs(ended: Ended | null | undefined, kinds: KindNumbers): Arg[] {
  if (!ended) return [0, 0, '-', '-']
  return [kinds.number(ended.kind), KEY_OF[ended.state], sharedTime(ended.at), sharedTime(ended.expiresAt)]
}

/** How tasks end, or are cancelled. */
type Ending =
  | Extract<Outcome, { record: string }>
  | (Omit<Extract<Outcome, { type: 'end' }>, 'type'> & { type: 'cancel' })

/**
 * The outcomes of a call of settle, those together that begin alike.
 *
 * @returns Also the index of each outcome, in the order in which the script numbers them.
 */
export function outcomeArgs(
  outcomes: readonly (Outcome | Ending)[],
  kinds: KindNumbers,
): { args: Arg[]; order: number[] } {
  const endings = new Map<string, { begin: Arg[]; tasks: Arg[]; indexes: number[] }>()
  const changes: Arg[] = []
  const changed: number[] = []
  for (const [index, outcome] of outcomes.entries()) {
    if (!('record' in outcome)) {
      addChange(changes, outcome, kinds)
      changed.push(index)
      continue
    }
    const begin = [headOf(outcome, kinds, endOf(outcome)), ...(outcome.parent ? [outcome.parent.id] : [])]
    const key = begin.join(' ')
    const group = endings.get(key) ?? { begin, tasks: [], indexes: [] }
    if (group.tasks.length === 0) endings.set(key, group)
    group.tasks.push(outcome.id, outcome.record)
    group.indexes.push(index)
  }
  const args: Arg[] = [endings.size + changed.length]
  const order: number[] = []
  for (const { begin, tasks, indexes } of endings.values()) {
    args.push(...begin, indexes.length)
    // Not by spreading, here and below: a call has more arguments than fit on a stack.
    for (const arg of tasks) args.push(arg)
    for (const index of indexes) order.push(index)
  }
  for (const arg of changes) args.push(arg)
  return { args, order: [...order, ...changed] }
}

/** An outcome of a task that does not end: its parent hears nothing of it. */
function addChange(args: Arg[], change: Exclude<Outcome, { record: string }>, kinds: KindNumbers): void {
  const outcome = { ...change, parent: undefined }
  switch (outcome.type) {
    case 'retry':
      args.push(headOf(outcome, kinds, String(outcome.at)), outcome.id, outcome.envelope)
      break
    case 'release':
      args.push(headOf(outcome, kinds, '-'), outcome.id)
      break
    case 'call': {
      const { calls, steps, order, park, wakeAt, awaits, records, children } = outcome
      const head = headOf(outcome, kinds, `${calls},${steps},${park ? 1 : 0},${wakeAt ?? '-'},${order}`)
      args.push(head, outcome.id, records.length)
      for (const { id, record } of records) args.push(id, record)
      for (const arg of newTaskArgs(children, kinds)) args.push(arg)
      if (!park) break
      args.push(awaits?.alone ?? '-', awaits?.groups.length ?? 0)
      for (const group of awaits?.groups ?? []) args.push(group)
      break
    }
  }
}

/** Reads a claim's reply: see claim.lua. */
export function claimOf(reply: unknown, token: string): Claim {
  const [due, ids, texts, now] = reply as [string, string, string[], string]
  const startedAt = Number(now)
  return {
    tasks: ids === '' ? [] : ids.split('\x1e').map((id, i) => claimedOf(id, texts[i] ?? '', token, startedAt)),
    nextDueAt: due === '' ? null : Number(due),
  }
}

function claimedOf(id: string, text: string, token: string, now: number): Claimed {
  const words: string[] = []
  let at = text.indexOf(' ', text.indexOf(' ') + 1) + 1
  for (let i = 0; i < 6; i++) {
    const space = text.indexOf(' ', at)
    words.push(text.slice(at, space))
    at = space + 1
  }
  const [started, attempts, calls, steps, , kind = ''] = words
  const end = text.indexOf('\n', at)
  const [, order = ''] = text.slice(at, end).split(' ')
  return {
    id,
    kind,
    token,
    attempt: Number(attempts) + 1,
    calls: Number(calls),
    steps: Number(steps),
    order,
    startedAt: Number(started) || now,
    envelope: text.slice(end + 1),
  }
}

export function merge(into: Claim, more: Claim): void {
  into.tasks.push(...more.tasks)
  if (more.nextDueAt !== null) into.nextDueAt = Math.min(into.nextDueAt ?? more.nextDueAt, more.nextDueAt)
}

export function storedOf(id: string, value: unknown): Stored | null {
  if (typeof value === 'string') return { id, record: value, live: null }
  if (!Array.isArray(value)) return null
  const [text, pending, holder] = value as [string, string, string]
  return { id, record: null, live: liveOf(text, Number(pending), holder) }
}

/** Reads a live value, and who holds the task: see common.lua. */
function liveOf(text: string, pending: number, holder: string): Live {
  const end = text.indexOf('\n')
  const [, , heldSince] = holder.split(' ')
  const [state, , started, attempts, calls, steps, , kind = '', progress, order = ''] = text.slice(0, end).split(' ')
  const [done, total] = (progress ?? '-').split('/').map(Number)
  return {
    state: heldSince === undefined ? (state as Live['state']) : 'running',
    kind,
    attempts: Number(attempts),
    calls: Number(calls),
    steps: Number(steps),
    order,
    pending,
    startedAt: Number(heldSince ?? started) || null,
    progress: done !== undefined && total !== undefined ? { done, total } : null,
    envelope: text.slice(end + 1),
  }
}

/** Live tasks that have a final record: of each id, record and live value. */
export function foreignOf(found: readonly string[]): Foreign[] {
  const tasks: Foreign[] = []
  for (let i = 0; i + 2 < found.length; i += 3) {
    const [id = '', record = '', live = ''] = found.slice(i, i + 3)
    const { kind, envelope, calls, steps, order } = liveOf(live, 0, '')
    tasks.push({ id, kind, record, envelope, calls, steps, order })
  }
  return tasks
}

/** Ids that share an entry, in the order in which they came: see common.lua. */
export function idsOfEntry(entry: string): string[] {
  return entry.split('\n')
}

/** Those of live tasks, as of a queue or a sorted set: envelopes or ids, from the offset on. An envelope without an id is left out. */
export function liveListed(page: readonly string[], partition: number, state: State, offset: number): Listed[] {
  return page.flatMap((text, i) => {
    const id = state === 'queued' ? readEnvelope(text)?.task_id : text
    return id === undefined ? [] : { id, place: [partition, offset + i + 1] }
  })
}

/** Those of final tasks, from the last that ended: entries, each followed by its time. Of those that ended at `from`, so many were listed before. */
export function endedListed(
  entries: readonly string[],
  partition: number,
  page: { from: number | undefined; skip: number; limit: number },
): Listed[] {
  const listed: Listed[] = []
  let time: number | undefined
  let count = 0
  for (let i = 0; i + 1 < entries.length; i += 2) {
    const at = Number(entries[i + 1])
    if (at !== time) count = 0
    time = at
    for (const id of idsOfEntry(entries[i] ?? '').toReversed()) {
      count++
      if (at !== page.from || count > page.skip) listed.push({ id, place: [partition, at, count] })
    }
  }
  return listed.slice(0, page.limit)
}

export function statsOf(kind: string, row: readonly unknown[]): KindStats {
  const at = (i: number) => Number(row[i] ?? 0)
  return {
    kind,
    queued: Math.max(0, at(0) + at(1) + at(2) - at(12)),
    running: at(3),
    delayed: at(4),
    waiting: at(5),
    succeeded: at(6),
    failed: at(7),
    cancelled: at(8),
    broken: at(9),
    lastMinute: { succeeded: at(10), failed: at(11) },
    oldest: row.slice(13).flatMap((envelope) => (typeof envelope === 'string' ? (createdAtIn(envelope) ?? []) : [])),
  }
}

const COUNTS = ['queued', 'running', 'waiting', 'delayed', 'succeeded', 'failed', 'cancelled', 'broken'] as const

export function addStats(a: KindStats, b: KindStats): KindStats {
  const sum = { ...a, oldest: [...a.oldest, ...b.oldest] }
  for (const count of COUNTS) sum[count] += b[count]
  const lastMinute = (state: Exclude<FinalState, 'cancelled'>) => a.lastMinute[state] + b.lastMinute[state]
  return { ...sum, lastMinute: { succeeded: lastMinute('succeeded'), failed: lastMinute('failed') } }
}

/** Reads a wake-up: kinds, and when their tasks are due; 0 is now. Any program may publish: malformed messages are ignored. */
export function wakesOf(message: string): [kind: string, at: number][] {
  return Object.entries(parsed(message)).filter((entry): entry is [string, number] => typeof entry[1] === 'number')
}

/** Reads an event of tasks; null when the message is none. */
export function eventOf(message: string): TaskEvent | null {
  const { type, ids, records, id, chunk } = parsed(message)
  const isText = (value: unknown) => typeof value === 'string'
  if (type === 'end' && Array.isArray(ids)) {
    const texts = Array.isArray(records) ? records : []
    const tasks = ids.map((of, i) => ({ id: of, record: isText(texts[i]) && texts[i] !== '' ? texts[i] : null }))
    return { type, tasks: tasks.filter((task) => isText(task.id)) }
  }
  if (type === 'chunk' && typeof id === 'string' && typeof chunk === 'string') return { type, id, chunk }
  return null
}

function parsed(message: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(message))
  } catch {
    return {}
  }
}
