import { entryOf } from '../contestants/contestants.ts'
import { alternate } from '../measure/rounds.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { range, ratio } from '../report/format.ts'
import type { Goal, Scenario } from './scenario.ts'
import { rateOf } from './throughput.ts'

const GOALS: Readonly<Record<number, number>> = { 10000: 0.5, 100000: 0.7 }

export const sequence: Scenario = {
  name: 'sequence',
  async run(bench) {
    const entry = entryOf('tasker-redis')
    const { quick, n } = bench.options
    const sizes = n !== null ? [n] : quick ? [10_000] : [10_000, 100_000]
    const rows: string[][] = []
    const goals: Goal[] = []
    const data: Record<string, unknown> = {}
    for (const size of sizes) {
      const runs = (
        await alternate(bench, [entry], async () => ({
          sequence: rateOf(await bench.run(entry, [['sequence', size]])),
          flat: rateOf(await bench.run(entry, [['end-to-end', size]])),
        }))
      ).of[entry.name]
      const of = (what: 'sequence' | 'flat') => (runs ?? []).map((run) => run?.[what] ?? null)
      const rate = (what: 'sequence' | 'flat') => spread(of(what).filter((value) => value !== null))
      const measured = pairwise(of('sequence'), of('flat'))
      rows.push([`n = ${size}`, range(rate('sequence')), range(rate('flat')), ratio(measured)])
      const atLeast = GOALS[size]
      if (atLeast !== undefined) goals.push({ text: `n = ${size}: sums of a sequence ÷ flat tasks`, measured, atLeast })
      data[size] = runs
    }
    return {
      title: 'sequence: sums a second within one sequence, beside as many tasks added flat (Tasker on Redis)',
      columns: ['', 'sums/s', 'flat tasks/s', 'ratio'],
      ...{ rows, goals, data },
    }
  },
}
