import { alternate } from '../measure/rounds.ts'
import type { Run } from '../measure/run.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { number } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

export const memory: Scenario = {
  name: 'memory',
  async run(bench) {
    const n = bench.size(20_000, 5_000)
    const entries = bench.entries(['tasker-redis', 'bullmq', 'bee-queue'])
    // The first process leaves what is there but once: scripts, and keys that are not a task's.
    const phases = [
      ['end-to-end', 100],
      ['add', n],
      ['worker', n],
    ] as const
    const rounds = await alternate(bench, entries, (entry) => bench.run(entry, phases))
    const bytes = (run: Run | null, end: number) => {
      const [empty, then] = [run?.ends[0], run?.ends[end]]
      return empty && then ? (then.memoryBytes - empty.memoryBytes) / n : null
    }
    const of = (name: string, label: 'queued' | 'finished') =>
      (rounds.of[name] ?? []).map((run) => bytes(run, label === 'queued' ? 1 : 2))
    const figure = (name: string, label: 'queued' | 'finished') =>
      number(spread(of(name, label).filter((value) => value !== null))?.median)
    return {
      title: `memory: bytes of Redis for one task (${n} tasks, payload and result kept)`,
      columns: ['', 'queued', 'finished'],
      rows: rounds.entries.map(({ name, title }) => [title, figure(name, 'queued'), figure(name, 'finished')]),
      goals: [
        {
          text: 'finished: Tasker ÷ BullMQ',
          measured: pairwise(of('tasker-redis', 'finished'), of('bullmq', 'finished')),
          atMost: 1,
        },
      ],
      notes: ['bee-queue keeps payload and status, but no result.'],
      data: Object.fromEntries(
        entries.map(({ name }) => [name, { queued: of(name, 'queued'), finished: of(name, 'finished') }]),
      ),
    }
  },
}
