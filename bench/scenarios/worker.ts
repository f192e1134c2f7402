import type { Scenario } from './scenario.ts'
import { ratioOf, throughput, throughputReport } from './throughput.ts'

export const worker: Scenario = {
  name: 'worker',
  async run(bench) {
    const rounds = await throughput(bench, 'worker')
    return throughputReport('worker: one worker process takes off what is queued, from a standing start', rounds, [
      { text: 'Tasker on Redis ÷ BullMQ', measured: ratioOf(rounds, 'tasker-redis', 'bullmq'), atLeast: 3 },
    ])
  },
}
