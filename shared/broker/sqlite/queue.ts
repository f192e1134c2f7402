import { bytesOf } from '#shared/task/json.ts'
import { PRIORITIES, type Priority } from '#shared/task/task.ts'
import type { Claim, Claimed, ClaimRequest, NewTask, Reservable, Retry } from '../broker.ts'
import type { Database } from './database.ts'
import { NEVER } from './schema.ts'
import type { News } from './signals.ts'

/** What one call takes back at most, so that it cannot hold the file for long; the rest is still due, and says so by `nextDueAt`. */
const TAKE_BACK_LIMIT = 500

/**
 * Bytes of envelopes and records after which a call stops, so that it holds up others for some ms at most: an update
 * writes a row anew, with its envelope.
 */
export const ENOUGH_BYTES = 900_000

/** Priority as it is stored: 0 is taken first. */
export const rank = (priority: Priority): number => PRIORITIES.indexOf(priority)

/** How tasks enter the queues and leave them. To be called within a transaction. */
export interface Queue {
  /** Stores and queues a task, or delays it; false when its id is known. */
  add(task: NewTask, now: number, news: News): boolean
  /** Reserves an ended task; gives the token, or null when it has not ended or is another's. */
  reserve(task: Reservable, now: number, until: number): string | null
  /** Queues an ended task anew, at the back; false when it is not reserved under its token. */
  reopen(task: Retry, news: News): boolean
  /** Queues tasks again: the first of them will be the first to run. */
  toFront(tasks: readonly { seq: number; kind: string }[], news: News): void
  claim(request: ClaimRequest, now: number, news: News): Claim
}

export function createQueue(db: Database): Queue {
  const insertQueued = db.prepare(`
    INSERT INTO tasks (id, kind, priority, parent, wakes, envelope, state, position)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'queued', (
      SELECT coalesce(max(position), 0) + 1 FROM tasks WHERE kind = ?2 AND priority = ?3 AND position IS NOT NULL
    )) ON CONFLICT (id) DO NOTHING`)
  const insertDelayed = db.prepare(`
    INSERT INTO tasks (id, kind, priority, parent, wakes, envelope, state, at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'delayed', ?7)
    ON CONFLICT (id) DO NOTHING`)

  function add(task: NewTask, now: number, news: News): boolean {
    const { parent } = task
    const wakes = parent?.group === undefined ? null : String(parent.group)
    const values = [task.id, task.kind, rank(task.priority), parent?.id ?? null, wakes, task.envelope] as const
    const dueAt = task.dueAt ?? null
    if (dueAt !== null && dueAt > now) {
      if (insertDelayed.run(...values, dueAt) === 0) return false
      news.due(task.kind, dueAt)
    } else {
      if (insertQueued.run(...values) === 0) return false
      news.queued(task.kind)
    }
    return true
  }

  // The end of a reservation is its token.
  const mark = db.prepare(`
    UPDATE tasks SET token = ?2 WHERE id = ?1 AND state IN ('succeeded', 'failed', 'cancelled')
      AND (token IS NULL OR token = ?3 OR CAST(token AS REAL) <= ?4)`)

  function reserve({ id, token: before = null }: Reservable, now: number, until: number): string | null {
    const token = String(until + Math.random())
    return mark.run(id, token, before, now) > 0 ? token : null
  }

  const reopenAtBack = db.prepare<{ kind: string }>(`
    UPDATE tasks SET state = 'queued', at = NULL, priority = ?3, envelope = ?4, calls = ?5, steps = ?6, deliveries = ?7, record = NULL, expires_at = NULL,
      token = NULL, attempts = 0, started_at = NULL, done = NULL, total = NULL, position = (
        SELECT coalesce(max(position), 0) + 1 FROM tasks AS others
        WHERE others.kind = tasks.kind AND others.priority = ?3 AND others.position IS NOT NULL
      )
    WHERE id = ?1 AND token = ?2 AND state IN ('succeeded', 'failed', 'cancelled') RETURNING kind`)

  function reopen({ id, token, priority, envelope, history }: Retry, news: News): boolean {
    const row = reopenAtBack.get(id, token, rank(priority), envelope, history.calls, history.steps, history.order)
    if (row !== null) news.queued(row.kind)
    return row !== null
  }

  const moveToFront = db.prepare(`
    UPDATE tasks SET state = 'queued', at = NULL, token = NULL, position = (
      SELECT coalesce(min(position), 0) - 1 FROM tasks AS others
      WHERE others.kind = tasks.kind AND others.priority = tasks.priority AND others.position IS NOT NULL
    ) WHERE seq = ?`)

  function toFront(tasks: readonly { seq: number; kind: string }[], news: News): void {
    for (const task of tasks.toReversed()) {
      moveToFront.run(task.seq)
      news.queued(task.kind)
    }
  }

  const sizeOf = db.prepare<{ bytes: number }>(
    'SELECT length(CAST(envelope AS BLOB)) AS bytes FROM tasks WHERE seq = ?',
  )
  const selectDue = db.prepare<{ seq: number; kind: string; state: string }>(`
    SELECT seq, kind, state FROM tasks WHERE kind = ? AND state IN ('running', 'delayed', 'waiting') AND at <= ?
    ORDER BY at, seq LIMIT ${TAKE_BACK_LIMIT}`)
  const useUpAttempt = db.prepare('UPDATE tasks SET attempts = attempts + 1, started_at = NULL WHERE seq = ?')

  function takeBack(kinds: readonly string[], now: number, news: News): void {
    let bytes = 0
    for (const kind of kinds) {
      const all = selectDue.all(kind, now)
      const due: typeof all = []
      for (const task of all) {
        bytes += sizeOf.get(task.seq)?.bytes ?? 0
        if (due.length > 0 && bytes > ENOUGH_BYTES) break
        due.push(task)
      }
      for (const task of due) if (task.state === 'running') useUpAttempt.run(task.seq)
      toFront(due, news)
      if (bytes > ENOUGH_BYTES) return
    }
  }

  const selectQueued = db.prepare<Omit<Claimed, 'token' | 'startedAt'> & { seq: number; startedAt: number | null }>(`
    SELECT seq, id, kind, attempts + 1 AS attempt, calls, steps, deliveries AS "order", started_at AS startedAt, envelope FROM tasks
    WHERE kind = ? AND priority = ? AND position IS NOT NULL ORDER BY position LIMIT ?`)
  const hold = db.prepare(`
    UPDATE tasks SET state = 'running', position = NULL, token = ?, at = ?, started_at = ? WHERE seq = ?`)
  const selectNextDue = db.prepare<{ at: number }>(`
    SELECT at FROM tasks WHERE kind = ? AND state = ? AND at < ${NEVER} ORDER BY at LIMIT 1`)

  function nextDueAt(kinds: readonly string[]): number | null {
    const times = kinds.flatMap((kind) =>
      ['running', 'delayed', 'waiting'].flatMap((state) => selectNextDue.get(kind, state)?.at ?? []),
    )
    return times.length === 0 ? null : Math.min(...times)
  }

  function claim({ kinds, limit, leaseMs, takeBack: alsoDue }: ClaimRequest, now: number, news: News): Claim {
    if (limit <= 0) return { tasks: [], nextDueAt: null }
    if (alsoDue) takeBack(kinds, now, news)
    const tasks: Claimed[] = []
    const token = crypto.randomUUID()
    let bytes = 0
    for (const priority of PRIORITIES) {
      for (const kind of kinds) {
        for (let more = true; more && tasks.length < limit; ) {
          const piece = pieceOf(limit - tasks.length, tasks.length, bytes)
          const queued = selectQueued.all(kind, rank(priority), piece)
          more = queued.length === piece
          for (const { seq, ...task } of queued) {
            bytes += bytesOf(task.envelope)
            if (tasks.length > 0 && bytes > ENOUGH_BYTES) return { tasks, nextDueAt: now }
            const startedAt = task.startedAt ?? now
            hold.run(token, now + leaseMs, startedAt, seq)
            tasks.push({ ...task, token, startedAt })
          }
        }
      }
    }
    return { tasks, nextDueAt: alsoDue ? nextDueAt(kinds) : null }
  }

  return { add, reserve, reopen, toFront, claim }
}

/**
 * How many more envelopes to read after so many with so many bytes: few at first, as nobody knows their size, and
 * never many more than are known.
 */
function pieceOf(left: number, count: number, bytes: number): number {
  if (count === 0) return Math.min(left, 4)
  return Math.max(1, Math.min(left, 16 * count, Math.floor(((ENOUGH_BYTES - bytes) * count) / Math.max(bytes, 1))))
}
