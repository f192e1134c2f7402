export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

export function spread(values: readonly number[]): Spread | null {
  if (values.length === 0) return null
  return { median: percentile(values, 50), min: Math.min(...values), max: Math.max(...values) }
}

/** The value that p percent are not above; the mean of the two in the middle for an even count at 50. */
export function percentile(values: readonly number[], p: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  const at = sorted.length - 1
  if (p === 50) return ((sorted[Math.floor(at / 2)] ?? Number.NaN) + (sorted[Math.ceil(at / 2)] ?? Number.NaN)) / 2
  return sorted[Math.min(at, Math.ceil((p / 100) * sorted.length) - 1)] ?? Number.NaN
}

/** Ratios within each round, where both ran: what slows the machine for a while slows both. */
export function pairwise(ours: readonly (number | null)[], theirs: readonly (number | null)[]): Spread | null {
  return spread(
    ours.flatMap((mine, round) => {
      const other = theirs[round]
      return mine && other ? [mine / other] : []
    }),
  )
}
