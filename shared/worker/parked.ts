import type { Claimed } from '#shared/broker/broker.ts'
import type { Course } from './course.ts'

/** Parked runs that are kept in memory, and characters that they were given: about half of the bytes that they hold. */
const MAX_RUNS = 10_000
const MAX_CHARS = 64_000_000
/** One whose task does not come back for so long has perhaps ended elsewhere, and is begun again from its history if not. */
const MAX_AGE_MS = 60_000

interface Kept {
  course: Course
  chars: number
  since: number
}

/** Parked runs that may go on in place. The oldest are dropped, and begin again from history: nothing but speed depends on them. */
export class ParkedRuns {
  readonly #kept = new Map<string, Kept>()
  #chars = 0

  keep(course: Course, now: number): void {
    const { id } = course.claimed
    this.drop(id)
    const chars = course.weight
    this.#kept.set(id, { course, chars, since: now })
    this.#chars += chars
    for (const oldest of this.#kept.keys()) {
      const fits = this.#kept.size <= MAX_RUNS && this.#chars <= MAX_CHARS
      if (fits || oldest === id) break
      this.drop(oldest)
    }
  }

  /** The run that this claim goes on with, which is then no longer kept; undefined when it is to begin from its history. */
  take(claimed: Claimed): Course | undefined {
    const kept = this.#kept.get(claimed.id)
    if (!kept) return undefined
    this.drop(claimed.id)
    return kept.course.fits(claimed) ? kept.course : undefined
  }

  drop(id: string): void {
    this.#chars -= this.#kept.get(id)?.chars ?? 0
    this.#kept.delete(id)
  }

  /** Drops those that were kept for too long. */
  dropOld(now: number): void {
    for (const [id, { since }] of this.#kept) {
      // They are in the order in which they were kept. A clock may have been put back.
      if (now - since < MAX_AGE_MS && since <= now) break
      this.drop(id)
    }
  }
}
