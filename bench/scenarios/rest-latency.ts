import { entryOf } from '../contestants/contestants.ts'
import { alternate } from '../measure/rounds.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { range, ratio } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

export const restLatency: Scenario = {
  name: 'rest-latency',
  async run(bench) {
    const entry = entryOf('tasker-rest')
    const rounds = await alternate(bench, [entry], (one) => bench.run(one, [['rest-latency', bench.size(1_000, 300)]]))
    const of = (figure: string) => (rounds.of[entry.name] ?? []).map((run) => run?.values[figure] ?? null)
    const shown = (figure: string) => range(spread(of(figure).filter((value) => value !== null)))
    const measured = pairwise(of('taskP50'), of('tripP50'))
    return {
      title: 'rest-latency: ms from creation to result over REST, with an idle worker, beside one bare request',
      columns: ['', 'p50', 'p99'],
      rows: [
        ['create → result', shown('taskP50'), shown('taskP99')],
        ['one request (PING)', shown('tripP50'), shown('tripP99')],
        ['ratio', ratio(measured), ''],
      ],
      goals: [{ text: 'create → result ÷ one request, p50', measured, atMost: 5 }],
      data: rounds.of,
    }
  },
}
