import { bytesOf } from '#shared/task/json.ts'
import { createdAtIn, ENVELOPE_END } from '#shared/task/record.ts'
import { FINAL_STATES, LIVE_STATES, type LiveState, PRIORITIES, type State } from '#shared/task/task.ts'
import type { Broker, KindStats, Listed, Stored } from '../broker.ts'
import type { Database } from './database.ts'
import { ENOUGH_BYTES, rank } from './queue.ts'

/** The methods that only read. */
export interface Look {
  get(ids: readonly string[], options: NonNullable<Parameters<Broker['get']>[1]>): (Stored | null)[]
  list(query: Parameters<Broker['list']>[0]): Listed[]
  /** In steps that are each short, however many tasks there are. */
  stats(kinds: readonly string[], now: number): Generator<void, KindStats[]>
  kinds(): string[]
  expired(now: number, limit: number): string[]
}

/** Rows that are counted in one step. */
const COUNT_ROWS = 50_000

export function createLook(db: Database): Look {
  const select = db.prepare<{
    state: LiveState
    kind: string
    record: string | null
    attempts: number
    calls: number
    steps: number
    order: string
    pending: number
    started_at: number | null
    done: number | null
    total: number | null
    envelope: string
  }>(`
    SELECT state, kind, record, attempts, calls, steps, deliveries AS "order", pending, started_at, done, total, envelope
    FROM tasks WHERE id = ?`)

  const selectEnded = db.prepare<{ record: string }>('SELECT record FROM tasks WHERE id = ? AND record IS NOT NULL')

  function get(
    ids: readonly string[],
    { some = false, endedOnly = false }: Parameters<Look['get']>[1],
  ): (Stored | null)[] {
    const found: (Stored | null)[] = []
    let bytes = 0
    for (const id of ids) {
      const stored = endedOnly ? getEnded(id) : getOne(id)
      if (some) bytes += bytesOf(stored?.record ?? stored?.live?.envelope ?? '')
      if (found.length > 0 && bytes > ENOUGH_BYTES) break
      found.push(stored)
    }
    return found
  }

  function getEnded(id: string): Stored | null {
    const row = selectEnded.get(id)
    return row && { id, record: row.record, live: null }
  }

  function getOne(id: string): Stored | null {
    const row = select.get(id)
    if (row === null) return null
    if (row.record !== null) return { id, record: row.record, live: null }
    const { state, kind, attempts, calls, steps, order, pending, started_at: startedAt, done, total, envelope } = row
    const progress = done === null || total === null ? null : { done, total }
    const live = { state, kind, attempts, calls, steps, order, pending, startedAt, progress, envelope }
    return { id, record: null, live }
  }

  const listQueued = db.prepare<{ id: string }>(`
    SELECT id FROM tasks WHERE kind = ? AND position IS NOT NULL ORDER BY priority, position DESC LIMIT ? OFFSET ?`)
  const listOther = db.prepare<{ id: string }>(`
    SELECT id FROM tasks WHERE kind = ? AND state = ? AND at IS NOT NULL ORDER BY at DESC, seq DESC LIMIT ? OFFSET ?`)

  function list({ kind, state, after, limit }: Parameters<Broker['list']>[0]): Listed[] {
    const [offset = 0] = after
    // SQLite takes a negative limit for none.
    const count = Math.max(0, limit)
    const rows = state === 'queued' ? listQueued.all(kind, count, offset) : listOther.all(kind, state, count, offset)
    return rows.map(({ id }, index) => ({ id, place: [offset + index + 1] }))
  }

  const countQueued = db.prepare<{ count: number }>(`
    SELECT count(*) AS count FROM tasks WHERE kind = ? AND priority = ? AND position < ? AND position >= ?`)
  const skipQueued = db.prepare<{ position: number }>(`
    SELECT position FROM tasks WHERE kind = ? AND priority = ? AND position < ? ORDER BY position DESC
    LIMIT 1 OFFSET ${COUNT_ROWS - 1}`)
  const countOther = db.prepare<{ count: number }>(`
    SELECT count(*) AS count FROM tasks WHERE kind = ? AND state = ? AND at > ? AND at <= ?`)
  const skipOther = db.prepare<{ at: number }>(`
    SELECT at FROM tasks WHERE kind = ? AND state = ? AND at > ? ORDER BY at LIMIT 1 OFFSET ${COUNT_ROWS - 1}`)
  const selectFront = db.prepare<{ envelope: string }>(`
    SELECT substr(envelope, -${ENVELOPE_END}) AS envelope FROM tasks
    WHERE kind = ? AND priority = ? AND position IS NOT NULL ORDER BY position LIMIT 1`)

  /**
   * Counts from one bound to the next, a step at a time: to count a million rows takes longer than the event loop may be
   * held.
   *
   * @param skip The bound after the next rows; undefined when these are the last.
   */
  function* countFrom(
    first: number,
    skip: (from: number) => number | undefined,
    count: (from: number, to: number | undefined) => { count: number } | null,
  ): Generator<void, number> {
    let sum = 0
    for (let from: number | undefined = first; from !== undefined; ) {
      const to = skip(from)
      yield
      sum += count(from, to)?.count ?? 0
      yield
      from = to
    }
    return sum
  }

  const countOf = (kind: string, state: State, after: number) =>
    countFrom(
      after,
      (from) => skipOther.get(kind, state, from)?.at,
      (from, to = Number.MAX_SAFE_INTEGER) => countOther.get(kind, state, from, to),
    )

  const countOfQueue = (kind: string, priority: number) =>
    countFrom(
      Number.MAX_SAFE_INTEGER,
      (from) => skipQueued.get(kind, priority, from)?.position,
      (from, to = Number.MIN_SAFE_INTEGER) => countQueued.get(kind, priority, from, to),
    )

  function* stats(kinds: readonly string[], now: number): Generator<void, KindStats[]> {
    const all: KindStats[] = []
    for (const kind of kinds) {
      let queued = 0
      for (const priority of PRIORITIES) queued += yield* countOfQueue(kind, rank(priority))
      const counts = { queued } as Record<State, number>
      for (const state of [...LIVE_STATES, ...FINAL_STATES]) {
        if (state !== 'queued') counts[state] = yield* countOf(kind, state, Number.MIN_SAFE_INTEGER)
      }
      all.push({
        kind,
        ...counts,
        broken: 0,
        oldest: PRIORITIES.flatMap(
          (priority) => createdAtIn(selectFront.get(kind, rank(priority))?.envelope ?? '') ?? [],
        ),
        lastMinute: {
          succeeded: yield* countOf(kind, 'succeeded', now - 60_000),
          failed: yield* countOf(kind, 'failed', now - 60_000),
        },
      })
      yield
    }
    return all
  }

  // Of each index, one step to the next kind: nothing is read of the tasks.
  const nextKinds = ['position', 'at'].map((column) =>
    db.prepare<{ kind: string }>(`
      SELECT kind FROM tasks WHERE kind > ? AND ${column} IS NOT NULL ORDER BY kind LIMIT 1`),
  )

  function kinds(): string[] {
    const found = new Set<string>()
    for (const next of nextKinds) {
      for (let row = next.get(''); row !== null; row = next.get(row.kind)) found.add(row.kind)
    }
    return [...found]
  }

  const selectExpired = db.prepare<{ id: string }>(`
    SELECT id FROM tasks WHERE expires_at <= ? ORDER BY expires_at, seq LIMIT ?`)

  function expired(now: number, limit: number): string[] {
    return selectExpired.all(now, Math.max(0, limit)).map((row) => row.id)
  }

  return { get, list, stats, kinds, expired }
}
