import * as z from 'zod'
import { InvalidInput, TaskNotFound } from '#shared/task/errors.ts'
import { digestOf } from '#shared/task/json.ts'
import { readRecord } from '#shared/task/record.ts'
import { childId, createdAtOf, FINAL_STATES, LIVE_STATES, type State } from '#shared/task/task.ts'
import type { Broker, Listed, Place, Stored } from './broker.ts'
import { unregisteredKinds } from './unregistered.ts'
import { type Contracts, createdAt, isStep, type TaskView, viewOf } from './view.ts'

export interface ListQuery {
  /** Left out: all kinds of the registry, and others of which there are tasks. */
  kind?: string | undefined
  status?: State | undefined
  limit: number
  /** Of the page before; null for the first. */
  cursor: string | null
}

export interface Page {
  tasks: TaskView[]
  /** Opaque; null when there is no more. */
  cursor: string | null
}

interface Source {
  key: string
  kind: string
  state: State
  after: Place
}

/**
 * Tasks, newest first by the time of their creation, as far as the store's order of each kind and state allows. Tasks that come or move on between two pages may show
 * twice or not at all; a page may be shorter than `limit` before the last.
 *
 * @throws InvalidInput when the cursor is not one of ours.
 */
export async function listTasks(broker: Broker, contracts: Contracts, query: ListQuery): Promise<Page> {
  const { limit } = query
  const places = decodeCursor(query, z.record(z.string(), z.array(z.int().min(0)).max(3)), {})
  const sources = sourcesOf(await kindsOf(broker, contracts, query), query, places)
  const lists = await Promise.all(sources.map((source) => candidates(broker, source, limit)))
  const taken = merge(lists, limit)
  const isLast = lists.every((list, at) => list.length < limit && taken.counts[at] === list.length)
  const views = await viewsOf(broker, contracts, taken.ids)
  const next = Object.fromEntries(
    sources.map(({ key, after }, at) => [key, lists[at]?.[(taken.counts[at] ?? 0) - 1]?.place ?? after]),
  )
  return {
    // One that has moved on since it was listed shows again in the list of its new state.
    tasks: views.filter(({ status }) => query.status === undefined || status === query.status),
    cursor: isLast ? null : encodeCursor(query, next),
  }
}

/**
 * The children of a task, newest first. Steps are no tasks and do not show. A page may be shorter than `limit` before the last.
 *
 * @throws TaskNotFound when the parent is unknown; InvalidInput when the cursor is not one of ours.
 */
export async function listChildren(
  broker: Broker,
  contracts: Contracts,
  query: ListQuery & { parent: string },
): Promise<Page> {
  const [parent] = await broker.get([query.parent])
  if (!parent) throw new TaskNotFound(query.parent)
  const calls = parent.live ? parent.live.calls : (readRecord(parent.record)?.calls ?? 0)
  const end = Math.min(calls, decodeCursor(query, z.int().min(0), calls))
  const start = Math.max(0, end - query.limit)
  const ids = Array.from({ length: end - start }, (_, index) => childId(query.parent, end - 1 - index))
  const views = await viewsOf(broker, contracts, ids)
  return {
    tasks: views.filter(
      ({ kind, status }) =>
        (query.kind === undefined || kind === query.kind) && (query.status === undefined || status === query.status),
    ),
    cursor: start > 0 ? encodeCursor(query, start) : null,
  }
}

async function kindsOf(broker: Broker, contracts: Contracts, { kind }: ListQuery): Promise<string[]> {
  if (kind !== undefined) return [kind]
  const registered = Object.keys(contracts)
  return [...registered, ...(await unregisteredKinds(broker, registered)).map((stats) => stats.kind)]
}

function sourcesOf(kinds: readonly string[], query: ListQuery, places: Record<string, Place>): Source[] {
  const states = query.status === undefined ? [...LIVE_STATES, ...FINAL_STATES] : [query.status]
  return kinds.flatMap((kind) =>
    states.map((state) => {
      const key = `${kind}:${state}`
      return { key, kind, state, after: places[key] ?? [] }
    }),
  )
}

interface Candidate extends Listed {
  createdAt: number
}

async function candidates(broker: Broker, { kind, state, after }: Source, limit: number): Promise<Candidate[]> {
  const listed = await broker.list({ kind, state, after, limit })
  const ids = listed.map(({ id }) => id)
  // Ids that were given (by a foreign producer, or made from an idempotency key) do not tell their time; what is stored may.
  const unclear = ids.filter((id) => createdAtOf(id) === null)
  const stored = unclear.length > 0 ? await broker.get(unclear) : []
  const known = new Map(unclear.map((id, at) => [id, stored[at] ? createdAt(stored[at]) : null]))
  let older = 0
  const times = ids
    .toReversed()
    // One without any time takes the place that the store gave it.
    .map((id) => {
      older = createdAtOf(id) ?? known.get(id) ?? older
      return older
    })
    .toReversed()
  return listed.map((one, at) => ({ ...one, createdAt: times[at] ?? 0 }))
}

/**
 * Takes the newest head of all lists, `limit` times; an id that comes twice is taken once. Ends where a list of `limit` is used up: newer ones than those of the
 * others may follow there. Tells how many came from each list.
 */
function merge(lists: readonly (readonly Candidate[])[], limit: number): { ids: string[]; counts: number[] } {
  const counts = lists.map(() => 0)
  const ids = new Set<string>()
  while (ids.size < limit) {
    let newest: Candidate | undefined
    let from = -1
    for (const [at, list] of lists.entries()) {
      const head = list[counts[at] ?? 0]
      if (head && (!newest || head.createdAt > newest.createdAt)) {
        newest = head
        from = at
      }
    }
    if (!newest) break
    ids.add(newest.id)
    counts[from] = (counts[from] ?? 0) + 1
    if (counts[from] === limit) break
  }
  return { ids: [...ids], counts }
}

async function viewsOf(broker: Broker, contracts: Contracts, ids: readonly string[]): Promise<TaskView[]> {
  const stored = ids.length > 0 ? await broker.get(ids) : []
  return stored.filter((task): task is Stored => task !== null && !isStep(task)).map((task) => viewOf(task, contracts))
}

type Filters = Pick<ListQuery, 'kind' | 'status' | 'cursor'> & { parent?: string }

/** What the cursor of a list goes with: under other filters its places would be those of other lists. */
function filtersOf({ kind, status, parent }: Filters): string {
  return digestOf(JSON.stringify([kind, status, parent]))
}

function encodeCursor(filters: Filters, value: unknown): string {
  const text = JSON.stringify([filtersOf(filters), value])
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '')
}

function decodeCursor<T>(filters: Filters, schema: z.ZodType<T>, first: T): T {
  if (filters.cursor === null) return first
  const read = z.tuple([z.string(), z.unknown()]).safeParse(parseCursor(filters.cursor))
  if (read.success && read.data[0] !== filtersOf(filters)) {
    throw wrongCursor('The cursor was given for other filters.')
  }
  const value = schema.safeParse(read.data?.[1])
  if (!value.success) throw wrongCursor('The cursor is not one that a page before gave.')
  return value.data
}

function parseCursor(cursor: string): unknown {
  try {
    return JSON.parse(atob(cursor.replaceAll('-', '+').replaceAll('_', '/')))
  } catch {
    return null
  }
}

function wrongCursor(detail: string): InvalidInput {
  return new InvalidInput(detail, [
    { path: 'cursor', message: 'Use the cursor of the page before, with the same filters.' },
  ])
}
