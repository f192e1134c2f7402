import { alternate } from '../measure/rounds.ts'
import type { Run } from '../measure/run.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { number } from '../report/format.ts'
import type { Goal, Scenario } from './scenario.ts'

// BullMQ first: its rate sets the load that all are given.
const NAMES = ['bullmq', 'tasker-redis', 'tasker-sqlite', 'bee-queue', 'bunqueue', 'job-queue']
const QUICK_NAMES = ['bullmq', 'tasker-redis', 'tasker-sqlite']
const FIGURES = ['idleP50', 'idleP99', 'halfP50', 'halfP99', 'givenP50', 'givenP99'] as const

export const latency: Scenario = {
  name: 'latency',
  async run(bench) {
    let load: number | undefined
    const rounds = await alternate(bench, bench.entries(bench.options.quick ? QUICK_NAMES : NAMES), async (entry) => {
      const run = await bench.run(entry, [['latency', bench.size(500, 200)]], load)
      if (entry.name === 'bullmq') load = (run.values['rate'] ?? 0) / 2
      return run
    })
    const values = (name: string, figure: string) =>
      (rounds.of[name] ?? []).map((run: Run | null) => run?.values[figure] ?? null)
    const goals: Goal[] = FIGURES.filter((figure) => !figure.startsWith('given')).map((figure) => ({
      text: `Tasker on Redis ÷ BullMQ, ${figure.startsWith('idle') ? 'idle' : 'half load'}, ${figure.slice(4).toLowerCase()}`,
      measured: pairwise(values('tasker-redis', figure), values('bullmq', figure)),
      atMost: 0.5,
    }))
    return {
      title: 'latency: ms from the creation of one task to its result in the same process',
      columns: ['', ...['idle', 'half its load', "half BullMQ's load"].flatMap((at) => [`${at}: p50`, 'p99'])],
      rows: rounds.entries.map(({ name, title }) => [
        title,
        ...FIGURES.map((figure) => number(spread(values(name, figure).filter((value) => value !== null))?.median)),
      ]),
      goals,
      notes: ["Half its load: half of the contestant's own end-to-end rate passes through meanwhile."],
      data: { runs: rounds.of, failures: rounds.failures },
    }
  },
}
