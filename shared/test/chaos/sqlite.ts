import { Database } from 'bun:sqlite'
import { FINAL_STATES, type FinalState } from '#shared/task/task.ts'
import { readEnds } from './ends.ts'
import type { Commit, Dump, Life } from './recording.ts'
import type { Store } from './store.ts'

/** Every write of a final record leaves a row, in the transaction that made it, with the token that held the task until then. */
const WATCH = `
  CREATE TABLE chaos_commits (id TEXT, record TEXT, holder TEXT, at INTEGER);
  CREATE TRIGGER chaos_ended AFTER UPDATE OF record ON tasks WHEN NEW.record IS NOT NULL
    BEGIN INSERT INTO chaos_commits VALUES (NEW.id, NEW.record, OLD.token, unixepoch('subsec') * 1000); END;
  CREATE TRIGGER chaos_stepped AFTER INSERT ON tasks WHEN NEW.record IS NOT NULL
    BEGIN INSERT INTO chaos_commits VALUES (NEW.id, NEW.record, NULL, unixepoch('subsec') * 1000); END;
`

/** Follows what happens in a SQLite file of Tasker's. It lives on when a process that fills it dies. By which tokens tasks were ended, these write down. */
export function watchSqlite(path: string, ends: string): Store {
  const db = new Database(path)
  db.run('PRAGMA busy_timeout = 5000')
  db.run(WATCH)
  const dump = async () => dumpOf(db)
  const life: Life = { start: dumpOf(db), commits: [], stored: new Map(), safeUntil: null, crashedAt: null }
  return {
    lives: [life],
    async dump() {
      const rows = db.query<Omit<Commit, 'token'>, []>('SELECT * FROM chaos_commits').all()
      const tokens = readEnds(ends)
      const commits = rows.map((row) => ({ ...row, token: tokens.get(row.id) ?? null }))
      life.commits.splice(0, life.commits.length, ...commits)
      return dump()
    },
    async stop() {
      db.close()
    },
  }
}

interface Row {
  id: string
  state: string
  position: number | null
  pending: number
  record: string | null
}

function dumpOf(db: Database): Dump {
  const rows = db.query<Row, []>('SELECT id, state, position, pending, record FROM tasks').all()
  const final = new Map<string, string>()
  const live = new Map<string, string>()
  const ended = new Map<string, FinalState[]>()
  const queued = new Set<string>()
  const left: string[] = []
  for (const { id, state, position, pending, record } of rows) {
    if (record === null) live.set(id, `${state} `)
    else final.set(id, record)
    const finalState = FINAL_STATES.find((known) => known === state)
    if (finalState) ended.set(id, [finalState])
    if (position !== null) queued.add(id)
    if (pending > 0) left.push(`${id} has ${pending} pending`)
  }
  return { at: Date.now(), final, live, ended, queued, left }
}
