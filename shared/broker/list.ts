import * as z from 'zod'
import { InvalidInput, TaskNotFound } from '#shared/task/errors.ts'
import { bytesOf, digestOf } from '#shared/task/json.ts'
import { readRecord } from '#shared/task/record.ts'
import { childId, createdAtOf, FINAL_STATES, LIVE_STATES, type State } from '#shared/task/task.ts'
import type { Broker, Listed, Place } from './broker.ts'
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

/** Bytes of tasks, as JSON, after which a page ends. */
const PAGE_BYTES = 1_000_000

interface Source {
  key: string
  kind: string
  state: State
  after: Place
}

/**
 * Tasks, newest first by the time of their creation, as far as the store's order of each kind and state allows. Tasks that come or move on between two pages may show
 * twice or not at all; a page may be shorter than `limit` before the last, and ends after about a megabyte.
 *
 * @throws InvalidInput when the cursor is not one of ours.
 */
export async function listTasks(broker: Broker, contracts: Contracts, query: ListQuery): Promise<Page> {
  const { limit } = query
  const places = decodeCursor(query, z.record(z.string(), z.array(z.int().min(0)).max(3)), {})
  const sources = sourcesOf(await kindsOf(broker, contracts, query), query, places)
  const lists = await Promise.all(sources.map((source) => candidates(broker, source, limit)))
  const { views, shown } = await viewsOf(broker, contracts, merge(lists, limit).ids)
  const { counts } = merge(lists, shown)
  const isLast = lists.every(({ listed, more }, at) => !more && counts[at] === listed.length)
  const next = Object.fromEntries(
    sources.map(({ key, after }, at) => [key, lists[at]?.listed[(counts[at] ?? 0) - 1]?.place ?? after]),
  )
  return {
    // One that has moved on since it was listed shows again in the list of its new state.
    tasks: views.filter(({ status }) => query.status === undefined || status === query.status),
    cursor: isLast ? null : encodeCursor(query, next),
  }
}

/**
 * The children of a task, newest first. Steps are no tasks and do not show. A page may be shorter than `limit` before
 * the last, and ends after about a megabyte.
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
  const { views, shown } = await viewsOf(broker, contracts, ids)
  return {
    tasks: views.filter(
      ({ kind, status }) =>
        (query.kind === undefined || kind === query.kind) && (query.status === undefined || status === query.status),
    ),
    cursor: end - shown > 0 ? encodeCursor(query, end - shown) : null,
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

/** What one source has next. */
interface Candidates {
  listed: Candidate[]
  /** Whether more may follow. */
  more: boolean
}

async function candidates(broker: Broker, { kind, state, after }: Source, limit: number): Promise<Candidates> {
  const found = await broker.list({ kind, state, after, limit })
  // Ids that were given (by a foreign producer, or made from an idempotency key) do not tell their time; what is stored may.
  const unclear = found.flatMap(({ id }) => (createdAtOf(id) === null ? id : []))
  const stored = unclear.length > 0 ? await broker.get(unclear, { some: true }) : []
  const known = new Map(stored.map((one, at) => [unclear[at] ?? '', one ? createdAt(one) : null]))
  // Where what is stored was too much for one call, the rest is left for the next page.
  const untold = unclear[stored.length]
  const told =
    untold === undefined
      ? found
      : found.slice(
          0,
          found.findIndex(({ id }) => id === untold),
        )
  let older = 0
  const times = told
    .toReversed()
    // One without any time takes the place that the store gave it.
    .map(({ id }) => {
      older = createdAtOf(id) ?? known.get(id) ?? older
      return older
    })
    .toReversed()
  return {
    listed: told.map((one, at) => ({ ...one, createdAt: times[at] ?? 0 })),
    more: found.length === limit || told.length < found.length || found.at(-1)?.isCut === true,
  }
}

/**
 * Takes the newest head of all lists, `limit` times; an id that comes twice is taken once. Ends where a list is used
 * up that goes on: newer ones than those of the others may follow there. Tells how many came from each list.
 */
function merge(lists: readonly Candidates[], limit: number): { ids: string[]; counts: number[] } {
  const counts = lists.map(() => 0)
  const ids = new Set<string>()
  while (ids.size < limit) {
    let newest: Candidate | undefined
    let from = -1
    let isLast = false
    for (const [at, { listed, more }] of lists.entries()) {
      const count = counts[at] ?? 0
      const head = listed[count]
      if (head && (!newest || head.createdAt > newest.createdAt)) {
        newest = head
        from = at
        isLast = more && count + 1 === listed.length
      }
    }
    if (!newest) break
    ids.add(newest.id)
    counts[from] = (counts[from] ?? 0) + 1
    if (isLast) break
  }
  return { ids: [...ids], counts }
}

/** The first of these as they are shown, up to the size of a page, and how many ids that are: at least one. */
async function viewsOf(
  broker: Broker,
  contracts: Contracts,
  ids: readonly string[],
): Promise<{ views: TaskView[]; shown: number }> {
  const stored = ids.length > 0 ? await broker.get(ids, { some: true }) : []
  const views: TaskView[] = []
  let bytes = 0
  for (const [at, task] of stored.entries()) {
    if (task === null || isStep(task)) continue
    const view = viewOf(task, contracts)
    bytes += bytesOf(JSON.stringify(view))
    if (views.length > 0 && bytes > PAGE_BYTES) return { views, shown: at }
    views.push(view)
  }
  return { views, shown: stored.length }
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
