import type { Broker, KindStats } from './broker.ts'

/** Kinds that are looked at. */
const MAX_KINDS = 200

/** Counts of the kinds that are not registered here, and of which the store has tasks all the same: those of a handler that was renamed or taken out. */
export async function unregisteredKinds(broker: Broker, registered: readonly string[]): Promise<KindStats[]> {
  const others = (await broker.kinds([])).filter((kind) => !registered.includes(kind)).toSorted()
  if (others.length === 0) return []
  return (await broker.stats(others.slice(0, MAX_KINDS))).filter((stats) => liveOf(stats) + endedOf(stats) > 0)
}

/** Tasks that have not ended. */
export function liveOf({ queued, running, waiting, delayed }: KindStats): number {
  return queued + running + waiting + delayed
}

function endedOf({ succeeded, failed, cancelled, broken }: KindStats): number {
  return succeeded + failed + cancelled + broken
}
