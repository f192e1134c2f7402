import { readEnvelope, readRecord } from '#shared/task/record.ts'
import { expiryOf, finalState } from '#shared/task/task.ts'
import type { Outcome, Swept } from './broker.ts'
import { removeTrees, type TreeDeps } from './tree.ts'

/**
 * Looks once for work that nobody reports: forgets the trees of roots whose record has expired, and takes over results that foreign
 * workers wrote, so that waiting parents go on. At most `limit` of each; gives how many there were, so that a caller goes on
 * while there is something to do.
 */
export async function sweepOnce(deps: TreeDeps, limit: number): Promise<{ expired: number; adopted: number }> {
  const { expired, foreign } = await deps.broker.sweep(limit)
  await adopt(deps, foreign)
  const stored = expired.length > 0 ? await deps.broker.get(expired) : []
  // What is gone was swept by another process; what is live again was retried meanwhile.
  await removeTrees(
    deps,
    stored.filter((task) => task !== null && task.live === null),
  )
  return { expired: expired.length, adopted: foreign.length }
}

async function adopt({ broker, now }: TreeDeps, foreign: Swept['foreign']): Promise<void> {
  if (foreign.length === 0) return
  const at = now()
  await broker.settle(
    foreign.map(({ id, kind, record, envelope }): Outcome => {
      const sent = readEnvelope(envelope)
      const { parent, created_at, retention_s } = sent ?? {}
      const read = readRecord(record)
      // A text that is no record stands for a failure.
      const written: object = read === null ? { result: record, status_code: 500 } : JSON.parse(record)
      const known = { kind, created_at, finished_at: at, parent, retention_s }
      return {
        ...{ type: 'adopt', id, kind, token: '', parent, endedAt: at },
        state: read === null ? 'failed' : finalState(read),
        record: JSON.stringify({ ...written, ...known }),
        expiresAt: expiryOf(known),
      }
    }),
  )
}
