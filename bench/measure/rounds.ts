import type { Entry } from '../contestants/contestants.ts'
import type { Bench } from './bench.ts'

/** What each contestant gave, a round at a time; null where it failed. */
export interface Rounds<T> {
  readonly entries: readonly Entry[]
  readonly of: Readonly<Record<string, readonly (T | null)[]>>
  /** Why a contestant gave nothing, by name. */
  readonly failures: Readonly<Record<string, string>>
}

/** Runs the contestants in turn, A B C A B C …: what changes on the machine meets all of them. One that fails is left out from then on. */
export async function alternate<T>(
  bench: Bench,
  entries: readonly Entry[],
  run: (entry: Entry, round: number) => Promise<T>,
  rounds = bench.options.rounds,
): Promise<Rounds<T>> {
  const of: Record<string, (T | null)[]> = Object.fromEntries(entries.map(({ name }) => [name, []]))
  const failures: Record<string, string> = {}
  for (let round = 0; round < rounds; round++) {
    for (const entry of entries) {
      if (failures[entry.name] !== undefined) {
        of[entry.name]?.push(null)
        continue
      }
      try {
        of[entry.name]?.push(await run(entry, round))
      } catch (error) {
        failures[entry.name] = error instanceof Error ? error.message : String(error)
        bench.say(`  ${entry.title} failed: ${failures[entry.name]}`)
        of[entry.name]?.push(null)
      }
    }
  }
  return { entries, of, failures }
}
