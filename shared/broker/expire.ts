import { readRecord } from '#shared/task/record.ts'
import { expiryOf } from '#shared/task/task.ts'
import { adopt } from './adopt.ts'
import { inParts } from './parts.ts'
import { removeTrees, type TreeDeps } from './tree.ts'

/** Roots, and live tasks, that one sweep looks at. */
export const SWEEP_LIMIT = 500

/**
 * Looks once for work that nobody reports: forgets the trees of roots whose record has expired, and takes over results that foreign
 * workers wrote, so that waiting parents go on. At most `limit` of each; gives how many there were, so that a caller goes on
 * while there is something to do.
 */
export async function sweepOnce(deps: TreeDeps, limit: number): Promise<{ expired: number; adopted: number }> {
  const { expired, foreign } = await deps.broker.sweep(limit)
  await adopt(deps.broker, foreign, deps.now())
  let left = 0
  for await (const stored of inParts(deps.broker, expired)) {
    // What is gone was swept by another process; what is live again was retried meanwhile.
    const ended = stored.filter((task) => task?.live === null)
    const due = ended.filter(({ record }) => isDue(record, deps.now()))
    await removeTrees(deps, due)
    left += ended.length - due.length
  }
  // One that is not due is found again each time: nobody is to hurry for it.
  return { expired: expired.length - left, adopted: foreign.length }
}

/**
 * A store may still have the time of an earlier record of the same id, over which a foreign program wrote. A record that tells when it expires is
 * believed.
 */
function isDue(record: string, now: number): boolean {
  const read = readRecord(record)
  if (read?.finished_at === undefined) return true
  const expiresAt = expiryOf(read)
  return expiresAt !== null && expiresAt <= now
}
