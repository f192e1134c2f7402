import { statfsSync, statSync } from 'node:fs'
import { StoreUnavailable } from '#shared/task/errors.ts'

/** How often a store that is busy looks whether its files are still there, in ms: what is acknowledged into a file that was deleted was acknowledged no longer than this after. */
export const LOOK_AT_FILES_MS = 100

/** Bytes that must be free on the disk: a call that changes much needs about so many. */
const LEAST_FREE = 2 * 1024 * 1024

/** The files that SQLite has open, as the path leads to them. */
export interface OpenFiles {
  /** Looks whether they are still the same, if it has not done so for `LOOK_AT_FILES_MS`: so nothing of it is felt when calls are many, and a call after a pause always looks. */
  check(): void
  /** Looks at once, and whether there are so many bytes of room on the disk. */
  inspect(leastFree?: number): void
}

/**
 * The files behind an open database: SQLite goes on writing into a file that was deleted or replaced, and what it writes there is lost. They are never opened here: to close
 * any descriptor of a file drops the locks that this process, and SQLite in it, holds on that, and another process would take itself for the last and delete the log.
 *
 * @param clock Milliseconds of a clock that only goes forward.
 * @throws StoreUnavailable from its methods, when a file is gone or another one.
 */
export function openFiles(path: string, clock: () => number = () => performance.now()): OpenFiles {
  const paths = [path, `${path}-wal`]
  // The log is there from the first read or write on, and stays until the last process closes the file.
  const known = new Map<string, string>()
  let lookedAt = Number.NEGATIVE_INFINITY

  function look(): void {
    for (const one of paths) {
      const found = identityOf(one)
      const before = known.get(one)
      if (before === undefined && found !== null) known.set(one, found)
      if (before === undefined || before === found) continue
      const what = found === null ? 'deleted' : 'replaced by another file'
      throw new StoreUnavailable(
        `The SQLite file ${one} was ${what} while it was open, and what is stored now would be lost. Stop every process that uses it, put the file back or restore a backup, and start them again.`,
      )
    }
    lookedAt = clock()
  }

  look()
  return {
    check() {
      if (clock() - lookedAt >= LOOK_AT_FILES_MS) look()
    },
    inspect(leastFree = LEAST_FREE) {
      look()
      const { bavail, bsize, blocks } = statfsSync(path)
      // Some file systems do not tell.
      if (blocks > 0 && bavail * bsize < leastFree) throw new StoreUnavailable(`The disk of ${path} is full.`)
    },
  }
}

/** In memory there are none. */
export const NO_FILES: OpenFiles = { check: () => undefined, inspect: () => undefined }

/** Device and inode; null when there is no such file. */
function identityOf(path: string): string | null {
  const found = statSync(path, { bigint: true, throwIfNoEntry: false })
  return found ? `${found.dev}:${found.ino}` : null
}
