import type { CallOutcome, Cancellation, Cancelled, EndOutcome, Lapsed, Lease, Outcome } from '../broker.ts'
import type { Database } from './database.ts'
import { ENOUGH_BYTES, type Queue } from './queue.ts'
import { NEVER } from './schema.ts'
import type { News } from './signals.ts'

interface Row {
  seq: number
  id: string
  kind: string
  state: string
  token: string | null
  parent: string | null
  wakes: string | null
  calls: number
  pending: number
}

/** How runs go on and end. To be called within a transaction. */
export interface Ending {
  /** Returns the ids that were refused. */
  settle(outcomes: readonly Outcome[], now: number, news: News): string[]
  /** Moves the deadlines of as many as one call may write, at least of the first, and tells of how many. */
  extend(leases: readonly Lease[], deadline: number): Lapsed & { count: number }
  cancel(tasks: readonly Cancellation[], news: News): Cancelled[]
}

export function createEnding(db: Database, queue: Queue): Ending {
  const select = db.prepare<Row>(
    'SELECT seq, id, kind, state, token, parent, wakes, calls, pending FROM tasks WHERE id = ?',
  )

  const finish = db.prepare(`
    UPDATE tasks SET state = ?, record = ?, expires_at = ?, at = ?, position = NULL, token = NULL, envelope = NULL
    WHERE seq = ?`)

  function end(task: Row, how: Omit<EndOutcome, 'type'>, news: News): void {
    finish.run(how.state, how.record, task.parent === null ? how.expiresAt : null, how.endedAt, task.seq)
    news.ended(task.id, how.record)
  }

  const subtractPending = db.prepare<Row>(`
    UPDATE tasks SET pending = max(0, pending - ?2) WHERE id = ?1 AND pending > 0 RETURNING seq, kind, state, pending`)

  const subtractGroup = db.prepare<{ pending: number }>(`
    UPDATE groups SET pending = pending - 1 WHERE parent = ? AND first = ? RETURNING pending`)
  const forgetGroup = db.prepare('DELETE FROM groups WHERE parent = ? AND first = ?')

  /** Whether the end of this child completes something that its parent awaits beside others. */
  function completesGroup({ parent, wakes }: Row): boolean {
    if (wakes === null || wakes === 'one') return wakes === 'one'
    const left = subtractGroup.get(parent, wakes)?.pending ?? 0
    if (left <= 0) forgetGroup.run(parent, wakes)
    return left === 0
  }

  /** Tells the parents, once for all their children in a call. */
  function reportEnded(ended: readonly Row[], news: News): void {
    const parents = new Map<string, { count: number; completes: boolean }>()
    for (const child of ended) {
      if (child.parent === null) continue
      const known = parents.get(child.parent) ?? { count: 0, completes: false }
      parents.set(child.parent, known)
      known.count++
      if (completesGroup(child)) known.completes = true
    }
    const resumed: Row[] = []
    for (const [id, { count, completes }] of parents) {
      const parent = subtractPending.get(id, count)
      if (parent?.state === 'waiting' && (completes || parent.pending === 0)) resumed.push(parent)
    }
    queue.toFront(resumed, news)
  }

  const insertStep = db.prepare(`
    INSERT INTO tasks (id, kind, priority, state, record) VALUES (?, '', 0, 'step', ?) ON CONFLICT (id) DO NOTHING`)
  const recordCalls = db.prepare('UPDATE tasks SET calls = ?, steps = ?, deliveries = ?, pending = ? WHERE seq = ?')
  const addToGroup = db.prepare(`
    INSERT INTO groups (parent, first, pending) VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET pending = pending + 1`)
  const selectGroup = db.prepare<{ pending: number }>('SELECT pending FROM groups WHERE parent = ? AND first = ?')

  /** Whether something that a task is parked for has ended since it looked: of so many unfinished children. */
  function mayGoOn({ id }: Row, { awaits, wakeAt }: CallOutcome, pending: number): boolean {
    if (awaits === null) return pending === 0 && wakeAt === null
    const left = awaits.groups.map((group) => selectGroup.get(id, String(group))?.pending ?? 0)
    return left.includes(0) || pending - left.reduce((a, b) => a + b, 0) < awaits.alone
  }
  const wait = db.prepare(`UPDATE tasks SET state = 'waiting', token = NULL, at = ? WHERE seq = ?`)

  /** Returns true when the task is to be queued again at once. */
  function call(task: Row, outcome: Outcome & { type: 'call' }, now: number, news: News): boolean {
    const created = outcome.children.filter((child) => queue.add(child, now, news))
    for (const { parent } of created) {
      if (typeof parent?.group === 'number') addToGroup.run(task.id, String(parent.group))
    }
    for (const { id, record } of outcome.records) insertStep.run(id, record)
    const pending = task.pending + created.length
    recordCalls.run(outcome.calls, outcome.steps, outcome.order, pending, task.seq)
    if (!outcome.park) return false
    if (mayGoOn(task, outcome, pending)) return true
    wait.run(outcome.wakeAt ?? NEVER, task.seq)
    if (outcome.wakeAt !== null) news.due(task.kind, outcome.wakeAt)
    return false
  }

  const delay = db.prepare(`
    UPDATE tasks SET state = 'delayed', token = NULL, attempts = attempts + 1, started_at = NULL, at = ?, envelope = ? WHERE seq = ?`)

  function settle(outcomes: readonly Outcome[], now: number, news: News): string[] {
    const refused: string[] = []
    const ended: Row[] = []
    const back: Row[] = []
    for (const outcome of outcomes) {
      const task = select.get(outcome.id)
      // Nobody but a driver writes final records here, so there is never one to adopt.
      if (task?.state !== 'running' || task.token !== outcome.token || outcome.type === 'adopt') {
        refused.push(outcome.id)
        continue
      }
      switch (outcome.type) {
        case 'end':
          end(task, outcome, news)
          ended.push(task)
          break
        case 'retry':
          delay.run(outcome.at, outcome.envelope, task.seq)
          news.due(task.kind, outcome.at)
          break
        case 'release':
          back.push(task)
          break
        case 'call':
          if (call(task, outcome, now, news)) back.push(task)
          break
      }
    }
    queue.toFront(back, news)
    reportEnded(ended, news)
    return refused
  }

  const prolong = db.prepare<{ bytes: number }>(`
    UPDATE tasks SET at = ?, done = coalesce(?, done), total = coalesce(?, total)
    WHERE id = ? AND token = ? AND state = 'running' RETURNING length(CAST(envelope AS BLOB)) AS bytes`)

  function extend(leases: readonly Lease[], deadline: number): Lapsed & { count: number } {
    const lapsed = { lost: [] as string[], cancelled: [] as string[], count: 0 }
    let bytes = 0
    for (const { id, token, progress } of leases) {
      if (bytes > ENOUGH_BYTES) break
      lapsed.count++
      const held = prolong.get(deadline, progress?.done ?? null, progress?.total ?? null, id, token)
      bytes += held?.bytes ?? 0
      if (held) continue
      const state = select.get(id)?.state
      lapsed[state === undefined || state === 'cancelled' ? 'cancelled' : 'lost'].push(id)
    }
    return lapsed
  }

  function cancel(tasks: readonly Cancellation[], news: News): Cancelled[] {
    const ended: Row[] = []
    const answers = tasks.map(({ id, record, endedAt, expiresAt }) => {
      const task = select.get(id)
      if (task === null || !['queued', 'running', 'waiting', 'delayed'].includes(task.state)) {
        return { id, cancelled: false, calls: task?.calls ?? 0 }
      }
      end(task, { state: 'cancelled', record, endedAt, expiresAt }, news)
      ended.push(task)
      return { id, cancelled: true, calls: task.calls }
    })
    reportEnded(ended, news)
    return answers
  }

  return { settle, extend, cancel }
}
