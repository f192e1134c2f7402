import { adopt } from './adopt.ts'
import { removeTrees, type TreeDeps } from './tree.ts'

/**
 * Looks once for work that nobody reports: forgets the trees of roots whose record has expired, and takes over results that foreign
 * workers wrote, so that waiting parents go on. At most `limit` of each; gives how many there were, so that a caller goes on
 * while there is something to do.
 */
export async function sweepOnce(deps: TreeDeps, limit: number): Promise<{ expired: number; adopted: number }> {
  const { expired, foreign } = await deps.broker.sweep(limit)
  await adopt(deps.broker, foreign, deps.now())
  const stored = expired.length > 0 ? await deps.broker.get(expired) : []
  // What is gone was swept by another process; what is live again was retried meanwhile.
  await removeTrees(
    deps,
    stored.filter((task) => task !== null && task.live === null),
  )
  return { expired: expired.length, adopted: foreign.length }
}
