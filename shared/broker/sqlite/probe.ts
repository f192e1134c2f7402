import type { Database } from './database.ts'
import type { OpenFiles } from './file.ts'

/** How long a probe tries while another process writes, in ms, and how often. */
const BUSY_MS = 1_000
const AGAIN_MS = 50

/** Whoever asks within so many ms of a probe that went well is told so: it costs a write. */
const FRESH_MS = 1_000

/**
 * Asks whether the store can do its work: reads what it has from the file, not from memory, and writes a page. Resolves when it can, and rejects with what SQLite or the file
 * system says. While another process writes it waits without holding the event loop.
 */
export function createProbe(db: Database, options: { files: OpenFiles; busyTimeoutMs: number }): () => Promise<void> {
  const { files, busyTimeoutMs } = options
  const reads = [
    'SELECT seq FROM tasks ORDER BY seq DESC LIMIT 1',
    'SELECT seq FROM tasks ORDER BY id LIMIT 1',
    'SELECT kind FROM tasks WHERE position IS NOT NULL ORDER BY kind, priority, position DESC LIMIT 1',
    'SELECT kind FROM tasks WHERE at IS NOT NULL ORDER BY kind, state, at LIMIT 1',
  ].map((sql) => db.prepare(sql))
  const version = db.prepare<{ user_version: number }>('PRAGMA user_version')
  let wentWellAt = Number.NEGATIVE_INFINITY
  let underWay: Promise<void> | null = null

  function probe(): void {
    // What is in the cache says nothing of the file.
    db.exec('PRAGMA shrink_memory')
    for (const read of reads) read.get()
    withoutWaiting(db, busyTimeoutMs, () => {
      db.exec('BEGIN IMMEDIATE')
      try {
        // The version that is there, read under the lock: it is written all the same, and nothing changes.
        db.exec(`PRAGMA user_version = ${version.get()?.user_version ?? 0}`)
        db.exec('COMMIT')
      } catch (error) {
        rollBack(db)
        throw error
      }
    })
  }

  async function answer(began: number): Promise<void> {
    for (;;) {
      try {
        probe()
        wentWellAt = performance.now()
        return
      } catch (error) {
        if (!isBusy(error) || performance.now() - began >= Math.min(BUSY_MS, busyTimeoutMs)) throw error
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS))
    }
  }

  return async () => {
    files.inspect()
    if (performance.now() - wentWellAt <= FRESH_MS) return
    underWay ??= answer(performance.now()).finally(() => {
      underWay = null
    })
    await underWay
  }
}

/** Runs what does not wait for another process that is writing, but fails. */
export function withoutWaiting(db: Database, busyTimeoutMs: number, body: () => void): void {
  db.exec('PRAGMA busy_timeout = 0')
  try {
    body()
  } finally {
    db.exec(`PRAGMA busy_timeout = ${busyTimeoutMs}`)
  }
}

/** Whether another process held the file. */
export function isBusy(error: unknown): boolean {
  return error instanceof Error && 'code' in error && String(error.code).startsWith('SQLITE_BUSY')
}

/** SQLite has already rolled back after some errors (a full disk): the first error is the one to tell. */
export function rollBack(db: Database): void {
  try {
    db.exec('ROLLBACK')
  } catch {}
}
