import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { runtime } from '#shared/runtime/adapter/runtime.ts'

export type Value = string | number | null

/** A prepared statement: `Row` is what its SQL selects. */
export interface Statement<Row = unknown> {
  get(...values: Value[]): Row | null
  all(...values: Value[]): Row[]
  /** Returns how many rows were changed. */
  run(...values: Value[]): number
}

/** The little that the broker needs of an SQLite library. */
export interface Database {
  exec(sql: string): void
  prepare<Row = unknown>(sql: string): Statement<Row>
  close(): void
}

/** Bytes that the write-ahead log keeps on disk once it begins anew. */
const MAX_LOG_BYTES = 16_777_216

/** Pages that one call gives back: a megabyte. */
const GIVE_BACK_PAGES = 256
/**
 * Fewer free pages than this are kept for what comes next, and so are those that are less than a quarter of the file.
 */
const MIN_FREE_PAGES = 4_096

/** The free space of a file. */
export interface Space {
  /**
   * Whether so much of the file is free that some of it should be given back. Never of a file that was made without
   * that.
   */
  isWasted(): boolean
  giveBack(): void
}

export function createSpace(db: Database): Space {
  const mode = db.prepare<{ auto_vacuum: number }>('PRAGMA auto_vacuum')
  const free = db.prepare<{ freelist_count: number }>('PRAGMA freelist_count')
  const all = db.prepare<{ page_count: number }>('PRAGMA page_count')
  const isIncremental = mode.get()?.auto_vacuum === 2
  return {
    isWasted() {
      const pages = isIncremental ? (free.get()?.freelist_count ?? 0) : 0
      return pages > MIN_FREE_PAGES && 4 * pages > (all.get()?.page_count ?? 0)
    },
    giveBack: () => db.exec(`PRAGMA incremental_vacuum(${GIVE_BACK_PAGES})`),
  }
}

/** What bun:sqlite and node:sqlite have in common. Its errors have the names of SQLite's codes in `code`. */
export interface Vendor {
  exec(sql: string): unknown
  prepare(sql: string): {
    get(...values: Value[]): unknown
    all(...values: Value[]): unknown[]
    run(...values: Value[]): { changes: number | bigint }
    /** node:sqlite has none. */
    finalize?(): void
  }
  close(): void
}

const { openVendor } =
  runtime === 'bun'
    ? await import('#shared/runtime/adapter/bun/sqlite.ts')
    : await import('#shared/runtime/adapter/node/sqlite.ts')

/** Opens the file, or `:memory:`, and makes it and its folder when they are missing. */
export function openDatabase(path: string, busyTimeoutMs: number): Database {
  if (path !== ':memory:') mkdirSync(dirname(path), { recursive: true })
  const vendor = openVendor(path)
  const finalizers: (() => void)[] = []
  const db: Database = {
    exec: (sql) => void vendor.exec(sql),
    prepare: <Row>(sql: string) => {
      const statement = vendor.prepare(sql)
      finalizers.push(() => statement.finalize?.())
      return {
        // node:sqlite says undefined where bun:sqlite says null.
        get: (...values) => (statement.get(...values) ?? null) as Row | null,
        all: (...values) => statement.all(...values) as Row[],
        run: (...values) => Number(statement.run(...values).changes),
      }
    },
    close() {
      // The file is not let go of while a statement is open.
      for (const finalize of finalizers.splice(0)) finalize()
      vendor.close()
    },
  }
  try {
    configure(db, busyTimeoutMs)
  } catch (error) {
    db.close()
    throw error
  }
  return db
}

function configure(db: Database, busyTimeoutMs: number): void {
  // First, so that the statements below wait for another process that is opening the same file.
  db.exec(`PRAGMA busy_timeout = ${busyTimeoutMs}`)
  // Only a new file takes this: one that is there would have to be written anew, for as long as that takes, and is
  // left as it is.
  db.exec('PRAGMA auto_vacuum = INCREMENTAL')
  db.exec('PRAGMA journal_mode = WAL')
  // A reader keeps the log from being used again from its start. When it is, what it has grown beyond this is given
  // back.
  db.exec(`PRAGMA journal_size_limit = ${MAX_LOG_BYTES}`)
  // With NORMAL a killed process loses nothing, but a power cut may undo tasks that were already acknowledged. FULL costs one
  // fsync a transaction, which a batch shares.
  db.exec('PRAGMA synchronous = FULL')
}
