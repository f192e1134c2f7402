import { SETTINGS } from './config.ts'
import type { Log } from './log.ts'

/** What Kubernetes sets for a service whose name begins with `tasker`. */
const OF_KUBERNETES = /_SERVICE_(HOST|PORT)|_PORT_\d+_/

/** So many letters may be wrong, missing or too many in a name that is taken for another. */
const MAX_TYPOS = 2

/** Warns of each variable that looks like a setting, and that nobody reads: a guard that is misspelt guards nothing. */
export function warnOfUnknownSettings(env: Record<string, string | undefined>, log: Log): void {
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith('TASKER_') || !value?.trim() || SETTINGS.includes(name)) continue
    if (OF_KUBERNETES.test(name) || value.startsWith('tcp://')) continue
    const meant = nearest(name)
    log.warn('A variable of the environment is no setting, and does nothing.', {
      name,
      ...(meant === null ? {} : { did_you_mean: meant }),
    })
  }
}

function nearest(name: string): string | null {
  // As `TASKER_REDIS_URL`: most settings have that prefix.
  const spellings = [name, name.slice('TASKER_'.length)]
  const typos = (setting: string) => Math.min(...spellings.map((spelling) => distance(spelling, setting)))
  const [best = ''] = SETTINGS.toSorted((a, b) => typos(a) - typos(b))
  return typos(best) <= MAX_TYPOS ? best : null
}

/** Levenshtein's: how many letters must be put in, taken out or replaced. */
function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, i) => i)
  for (const [i, letter] of Array.from(from).entries()) {
    const next = [i + 1]
    for (let j = 0; j < to.length; j++) {
      const replaced = (row[j] ?? 0) + (letter === to[j] ? 0 : 1)
      next.push(Math.min(replaced, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1))
    }
    row = next
  }
  return row.at(-1) ?? 0
}
