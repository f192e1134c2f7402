import type { Clock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'

/** The longest wait for a store that does not answer. */
export const MAX_PAUSE_MS = 5_000

export interface OutageDeps {
  readonly clock: Clock
  readonly log: Log
  readonly random: () => number
}

/** Whether the store answers, which is logged when it changes, and how long to wait while it does not. */
export class Outage {
  readonly #deps: OutageDeps
  #isAway = false
  #answers = 0

  constructor(deps: OutageDeps) {
    this.#deps = deps
  }

  /** The store did not answer when it was last asked. */
  get isAway(): boolean {
    return this.#isAway
  }

  /** How often the store has answered. */
  get answers(): number {
    return this.#answers
  }

  /** The store has answered. */
  answered(): void {
    this.#answers++
    if (this.#isAway) this.#deps.log.info('The store answers again')
    this.#isAway = false
  }

  /** The store has not answered so many times in a row. Returns how long to wait before the next call, in ms. */
  unanswered(error: StoreUnavailable, times: number): number {
    const { log, random } = this.#deps
    if (!this.#isAway) log.warn('The store does not answer; trying again', { reason: error.message })
    this.#isAway = true
    return Math.min(MAX_PAUSE_MS, 100 * 2 ** Math.min(times, 10)) * (0.5 + random() / 2)
  }

  /**
   * Makes a call again until the store answers: a result in hand is never thrown away.
   *
   * @throws StoreUnavailable once the signal has aborted.
   */
  async insist<T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> {
    for (let times = 1; ; times++) {
      try {
        const answer = await call()
        this.answered()
        return answer
      } catch (error) {
        if (!(error instanceof StoreUnavailable) || signal.aborted) throw error
        await this.#deps.clock.sleep(this.unanswered(error, times), signal)
      }
    }
  }
}
