import type { Bench } from '../measure/bench.ts'
import type { Spread } from '../measure/stats.ts'

export interface Goal {
  readonly text: string
  /** Null when it could not be measured. */
  readonly measured: Spread | null
  readonly atLeast?: number
  readonly atMost?: number
  /** `×` for a ratio. */
  readonly unit?: string
}

export interface Report {
  readonly title: string
  readonly columns: readonly string[]
  readonly rows: readonly (readonly string[])[]
  readonly goals: readonly Goal[]
  readonly notes?: readonly string[]
  /** All that was measured, for the file of results. */
  readonly data: unknown
}

export interface Scenario {
  readonly name: string
  run(bench: Bench): Promise<Report>
}
