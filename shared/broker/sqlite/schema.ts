import type { Database } from './database.ts'

const VERSION = 2

/** The `at` of a task that waits for its children alone: the last moment that a Date can name. */
export const NEVER = 8_640_000_000_000_000

/**
 * One table holds live tasks, final ones and the records of steps, so that an id is known by one look-up and a task ends by
 * one update. A task is in exactly one of the first two indexes, so that a change of state moves one entry:
 *
 * - `position`: its place in the queue of its kind and priority, while it is queued;
 * - `at`: when it comes back (running: the lease's end; delayed; waiting: its wake-up or NEVER), or when it ended.
 *
 * A step's record has neither, and is thereby in no list. A final row has a `record` and no `envelope`, a live one the opposite.
 * `deliveries` is the order of completion of its history. `wakes` is a child's group, where its parent awaits it beside others; `groups` counts the
 * unfinished children of such a group, unless it is `one`.
 * `pending` is kept up also for a final parent: it may be retried while its children still live. The `token` of a final row is that of who has reserved it for a retry.
 */
const SCHEMA = `
  CREATE TABLE tasks (
    seq        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    priority   INTEGER NOT NULL,
    parent     TEXT,
    position   INTEGER,
    at         INTEGER,
    token      TEXT,
    attempts   INTEGER NOT NULL DEFAULT 0,
    calls      INTEGER NOT NULL DEFAULT 0,
    steps      INTEGER NOT NULL DEFAULT 0,
    pending    INTEGER NOT NULL DEFAULT 0,
    started_at INTEGER,
    done       INTEGER,
    total      INTEGER,
    expires_at INTEGER,
    envelope   TEXT,
    record     TEXT,
    deliveries TEXT NOT NULL DEFAULT '',
    wakes      TEXT
  );
  CREATE TABLE groups (parent TEXT, first TEXT, pending INTEGER NOT NULL, PRIMARY KEY (parent, first)) WITHOUT ROWID;
  -- Descending, because a list goes by rising priority from the back of each queue; claims fix the priority and read backwards.
  CREATE INDEX tasks_queued ON tasks (kind, priority, position DESC) WHERE position IS NOT NULL;
  CREATE INDEX tasks_at ON tasks (kind, state, at) WHERE at IS NOT NULL;
  CREATE INDEX tasks_expiring ON tasks (expires_at) WHERE expires_at IS NOT NULL;
  PRAGMA user_version = ${VERSION};
`

/** From the layout before to each layout, by its number. */
const STEPS: Record<number, string> = {
  2: `
    ALTER TABLE tasks ADD COLUMN deliveries TEXT NOT NULL DEFAULT '';
    ALTER TABLE tasks ADD COLUMN wakes TEXT;
    CREATE TABLE groups (parent TEXT, first TEXT, pending INTEGER NOT NULL, PRIMARY KEY (parent, first)) WITHOUT ROWID;
    PRAGMA user_version = 2;
  `,
}

/** Makes the tables of a new file, or brings those of an older one up to date. Throws when a newer Tasker made the file. */
export function migrate(db: Database): void {
  const version = db.prepare<{ user_version: number }>('PRAGMA user_version')
  if (version.get()?.user_version === VERSION) {
    requireOurs(db, VERSION)
    return
  }
  db.exec('BEGIN IMMEDIATE')
  try {
    // Asked again under the lock: another process may have made them meanwhile.
    const found = version.get()?.user_version ?? 0
    if (found > VERSION) throw new Error(`The file has layout ${found}; this version of Tasker knows ${VERSION}.`)
    requireOurs(db, found)
    if (found === 0) db.exec(SCHEMA)
    else for (let next = found + 1; next <= VERSION; next++) db.exec(STEPS[next] ?? '')
    db.exec('COMMIT')
  } catch (error) {
    db.exec('ROLLBACK')
    throw error
  }
}

/** Columns of every layout. */
const COLUMNS = ['seq', 'id', 'kind', 'state', 'position', 'at', 'token', 'envelope', 'record']

/** Throws when the file is that of another program: nothing is changed in it, and none of its tables is taken for one of ours. */
function requireOurs(db: Database, version: number): void {
  const tables = db.prepare<{ count: number }>('SELECT count(*) AS count FROM sqlite_schema').get()?.count ?? 0
  if (version === 0 && tables === 0) return
  const columns = db.prepare<{ name: string }>(`SELECT name FROM pragma_table_info('tasks')`).all()
  const isOurs = version > 0 && COLUMNS.every((column) => columns.some(({ name }) => name === column))
  if (!isOurs) throw new Error('The file is one of SQLite, but of another program: its tables are not those of Tasker.')
}
