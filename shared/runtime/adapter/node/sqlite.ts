import { DatabaseSync } from 'node:sqlite'
import type { Value, Vendor } from '#shared/broker/sqlite/database.ts'

/** `node:sqlite`, on Node and on Deno, made to answer as bun:sqlite does: numbers, and errors with the names of SQLite's codes. */
export function openVendor(path: string): Vendor {
  const db = named(() => new DatabaseSync(path))
  return {
    exec: (sql) => named(() => db.exec(sql)),
    prepare(sql) {
      const statement = named(() => db.prepare(sql))
      // Else a whole number that a double cannot hold exactly is an error.
      statement.setReadBigInts(true)
      return {
        get: (...values: Value[]) => numbers(named(() => statement.get(...values))),
        all: (...values: Value[]) => named(() => statement.all(...values)).map(numbers),
        run: (...values: Value[]) => named(() => statement.run(...values)),
      }
    },
    close: () => db.close(),
  }
}

function numbers(row: unknown): unknown {
  const values = row as Record<string, unknown> | undefined
  for (const name in values) if (typeof values[name] === 'bigint') values[name] = Number(values[name])
  return row
}

/** Gives an error of SQLite's the name of its code; Deno does not tell the number of some. */
function named<T>(body: () => T): T {
  try {
    return body()
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ERR_SQLITE_ERROR') {
      error.code = nameOf('errcode' in error ? Number(error.errcode) : 1)
    }
    throw error
  }
}

// Both tables are those of sqlite3.h.
const CODES = [
  ...[
    'OK',
    'ERROR',
    'INTERNAL',
    'PERM',
    'ABORT',
    'BUSY',
    'LOCKED',
    'NOMEM',
    'READONLY',
    'INTERRUPT',
    'IOERR',
    'CORRUPT',
  ],
  ...['NOTFOUND', 'FULL', 'CANTOPEN', 'PROTOCOL', 'EMPTY', 'SCHEMA', 'TOOBIG', 'CONSTRAINT', 'MISMATCH', 'MISUSE'],
  ...['NOLFS', 'AUTH', 'FORMAT', 'RANGE', 'NOTADB'],
]
/** What a code is told more closely, from 1: in the bits above the lowest eight. */
const EXTENDED: Record<string, readonly string[]> = {
  BUSY: ['RECOVERY', 'SNAPSHOT', 'TIMEOUT'],
  LOCKED: ['SHAREDCACHE', 'VTAB'],
  READONLY: ['RECOVERY', 'CANTLOCK', 'ROLLBACK', 'DBMOVED', 'CANTINIT', 'DIRECTORY'],
  CORRUPT: ['VTAB', 'SEQUENCE', 'INDEX'],
  CANTOPEN: ['NOTEMPDIR', 'ISDIR', 'FULLPATH', 'CONVPATH', 'DIRTYWAL', 'SYMLINK'],
  IOERR: [
    ...[
      'READ',
      'SHORT_READ',
      'WRITE',
      'FSYNC',
      'DIR_FSYNC',
      'TRUNCATE',
      'FSTAT',
      'UNLOCK',
      'RDLOCK',
      'DELETE',
      'BLOCKED',
    ],
    ...[
      'NOMEM',
      'ACCESS',
      'CHECKRESERVEDLOCK',
      'LOCK',
      'CLOSE',
      'DIR_CLOSE',
      'SHMOPEN',
      'SHMSIZE',
      'SHMLOCK',
      'SHMMAP',
    ],
    ...['SEEK', 'DELETE_NOENT', 'MMAP', 'GETTEMPPATH', 'CONVPATH', 'VNODE', 'AUTH', 'BEGIN_ATOMIC', 'COMMIT_ATOMIC'],
    ...['ROLLBACK_ATOMIC', 'DATA', 'CORRUPTFS', 'IN_PAGE'],
  ],
  CONSTRAINT: [
    ...['CHECK', 'COMMITHOOK', 'FOREIGNKEY', 'FUNCTION', 'NOTNULL', 'PRIMARYKEY', 'TRIGGER', 'UNIQUE', 'VTAB', 'ROWID'],
    ...['PINNED', 'DATATYPE'],
  ],
}

function nameOf(number: number): string {
  const code = CODES[number & 0xff] ?? 'ERROR'
  const closer = EXTENDED[code]?.[(number >> 8) - 1]
  return closer ? `SQLITE_${code}_${closer}` : `SQLITE_${code}`
}
