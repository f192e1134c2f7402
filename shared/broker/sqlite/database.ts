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
  db.exec('PRAGMA journal_mode = WAL')
  // With NORMAL a killed process loses nothing, but a power cut may undo tasks that were already acknowledged. FULL costs one
  // fsync a transaction, which a batch shares.
  db.exec('PRAGMA synchronous = FULL')
}
