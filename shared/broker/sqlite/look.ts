import { FINAL_STATES, LIVE_STATES, type LiveState, PRIORITIES, type State } from '#shared/task/task.ts'
import type { Broker, KindStats, Listed, Stored } from '../broker.ts'
import type { Database } from './database.ts'
import { rank } from './queue.ts'

/** The methods that only read. */
export interface Look {
  get(ids: readonly string[], some: boolean): (Stored | null)[]
  list(query: Parameters<Broker['list']>[0]): Listed[]
  stats(kind: string, now: number): KindStats
  kinds(): string[]
  expired(now: number, limit: number): string[]
}

/** Characters of records and envelopes after which an answer may end. */
const ENOUGH_CHARS = 900_000

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

  function get(ids: readonly string[], some: boolean): (Stored | null)[] {
    const found: (Stored | null)[] = []
    let chars = 0
    for (const id of ids) {
      const stored = getOne(id)
      chars += (stored?.record ?? stored?.live?.envelope ?? '').length
      if (some && found.length > 0 && chars > ENOUGH_CHARS) break
      found.push(stored)
    }
    return found
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
    SELECT count(*) AS count FROM tasks WHERE kind = ? AND position IS NOT NULL`)
  const countOther = db.prepare<{ count: number }>(`
    SELECT count(*) AS count FROM tasks WHERE kind = ? AND state = ? AND at > ?`)
  const selectFront = db.prepare<{ envelope: string }>(`
    SELECT envelope FROM tasks WHERE kind = ? AND priority = ? AND position IS NOT NULL ORDER BY position LIMIT 1`)

  function stats(kind: string, now: number): KindStats {
    const count = (state: State, after: number) =>
      (state === 'queued' ? countQueued.get(kind) : countOther.get(kind, state, after))?.count ?? 0
    const counts = Object.fromEntries(
      [...LIVE_STATES, ...FINAL_STATES].map((state) => [state, count(state, Number.MIN_SAFE_INTEGER)]),
    ) as Record<State, number>
    return {
      kind,
      ...counts,
      broken: 0,
      oldest: PRIORITIES.flatMap((priority) => selectFront.get(kind, rank(priority))?.envelope ?? []),
      lastMinute: { succeeded: count('succeeded', now - 60_000), failed: count('failed', now - 60_000) },
    }
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
