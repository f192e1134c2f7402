import { spread } from '../measure/stats.ts'
import { number } from '../report/format.ts'
import type { Scenario } from './scenario.ts'
import { type Body, storeCpuMs, throughput } from './throughput.ts'

const BODIES: readonly Body[] = ['end-to-end', 'worker']

export const cpu: Scenario = {
  name: 'cpu',
  async run(bench) {
    const rows: string[][] = []
    const data: Record<string, unknown> = {}
    for (const body of BODIES) {
      const rounds = await throughput(bench, body)
      for (const { name, title, store, python } of rounds.entries) {
        // Their workers are processes of their own, whose start cannot be told from their work.
        if (python) continue
        const runs = (rounds.of[name] ?? []).filter((run) => run !== null)
        const seconds = (ms: (run: (typeof runs)[number]) => number) =>
          spread(runs.map((run) => (ms(run) / run.n) * 100))?.median
        const own = seconds((run) => run.cpuMs)
        const redis = store === 'Redis' ? seconds(storeCpuMs) : 0
        const sum = own === undefined || redis === undefined ? undefined : own + redis
        rows.push([title, body, number(own), store === 'Redis' ? number(redis) : 'none', number(sum)])
        data[`${name} ${body}`] = { own, redis }
      }
    }
    return {
      title: 'cpu: CPU seconds for 100,000 tasks (from the runs of end-to-end and worker)',
      columns: ['', 'scenario', 'process', 'Redis', 'together'],
      rows,
      goals: [],
      notes: ['Over REST, the endpoint works as well; its CPU time is not in the figures.'],
      data,
    }
  },
}
