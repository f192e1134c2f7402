import { entryOf } from '../contestants/contestants.ts'
import { alternate } from '../measure/rounds.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { range } from '../report/format.ts'
import type { Scenario } from './scenario.ts'
import { rateOf } from './throughput.ts'

const FEW = 1_000

export const backlog: Scenario = {
  name: 'backlog',
  async run(bench) {
    const entry = entryOf('tasker-redis')
    const many = bench.size(1_000_000, 100_000)
    const n = bench.size(50_000, 20_000)
    const rate = async (queued: number) =>
      rateOf(
        await bench.run(entry, [
          ['fill', queued],
          ['backlog', n],
        ]),
      )
    const rounds = await alternate(bench, [entry], async () => ({ few: await rate(FEW), many: await rate(many) }))
    const of = (what: 'few' | 'many') => (rounds.of[entry.name] ?? []).map((run) => run?.[what] ?? null)
    const shown = (what: 'few' | 'many') => range(spread(of(what).filter((value) => value !== null)))
    return {
      title: 'backlog: tasks/s with a short and a long queue (Tasker on Redis; as many come in as go out)',
      columns: ['queued', 'tasks/s'],
      rows: [
        [String(FEW), shown('few')],
        [String(many), shown('many')],
      ],
      goals: [{ text: `${many} queued ÷ ${FEW} queued`, measured: pairwise(of('many'), of('few')), atLeast: 0.9 }],
      data: rounds.of,
    }
  },
}
