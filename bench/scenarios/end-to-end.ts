import type { Scenario } from './scenario.ts'
import { ratioOf, throughput, throughputReport } from './throughput.ts'

export const endToEnd: Scenario = {
  name: 'end-to-end',
  async run(bench) {
    const rounds = await throughput(bench, 'end-to-end')
    const of = (ours: string, theirs: string) => ratioOf(rounds, ours, theirs)
    return throughputReport(
      'end-to-end: one process adds tasks in bulk and works them, until all results are stored',
      rounds,
      [
        { text: 'Tasker on Redis ÷ BullMQ', measured: of('tasker-redis', 'bullmq'), atLeast: 10 },
        { text: 'Tasker on Redis ÷ bee-queue', measured: of('tasker-redis', 'bee-queue'), atLeast: 4 },
        { text: 'Tasker on Redis ÷ the limit', measured: of('tasker-redis', 'limit'), atLeast: 0.5 },
        { text: 'Tasker on SQLite ÷ bunqueue on disk', measured: of('tasker-sqlite', 'bunqueue'), atLeast: 10 },
        { text: 'Tasker on SQLite ÷ BullMQ on Redis', measured: of('tasker-sqlite', 'bullmq'), atLeast: 2 },
      ],
    )
  },
}
