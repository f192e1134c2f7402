import { freePort } from '../../shared/test/process.ts'
import { pushForeign, QUEUE } from '../contestants/foreign.ts'
import { postSteadily } from '../load/http.ts'
import type { Bench } from '../measure/bench.ts'
import { startService } from '../measure/server.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { range } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

/** Requests a second: enough for a p99, too few to be a load themselves. */
const RATE = 200

export const postUnderLoad: Scenario = {
  name: 'post-under-load',
  async run(bench) {
    const tiny = bench.options.n !== null
    const seconds = tiny ? 1 : bench.size(10, 2)
    // More than a worker takes off in that time.
    const queued = bench.size(1_000_000, 250_000)
    const port = await freePort()
    const url = `http://127.0.0.1:${port}`
    const creator = await startService(
      'services/creator/main.ts',
      { REDIS_URL: bench.redisUrl, CREATOR_PORT: String(port) },
      `${url}/readyz`,
    )
    const idle: { p50: number; p99: number }[] = []
    const loaded: { p50: number; p99: number }[] = []
    let ranDry = 0
    try {
      for (let round = 0; round < bench.options.rounds; round++) {
        idle.push(await withWorker(bench, 0, () => postSteadily(`${url}/sum`, RATE, seconds)))
        loaded.push(
          await withWorker(bench, queued, async () => {
            const times = await postSteadily(`${url}/sum`, RATE, seconds)
            if ((await bench.redis.llen(QUEUE)) === 0) ranDry++
            return times
          }),
        )
      }
    } finally {
      await creator.stop()
    }
    const of = (times: typeof idle, figure: 'p50' | 'p99') => times.map((one) => one[figure])
    return {
      title: `post-under-load: ms of POST /sum at ${RATE} a second, beside a worker (Tasker on Redis)`,
      columns: ['the worker', 'p50', 'p99'],
      rows: [
        ['has nothing else to do', range(spread(of(idle, 'p50'))), range(spread(of(idle, 'p99')))],
        ['runs flat out', range(spread(of(loaded, 'p50'))), range(spread(of(loaded, 'p99')))],
      ],
      goals: [{ text: 'p99, flat out ÷ idle', measured: pairwise(of(loaded, 'p99'), of(idle, 'p99')), atMost: 3 }],
      notes:
        ranDry > 0
          ? [`In ${ranDry} rounds the queue ran empty before the end: the load was not there all the time.`]
          : [],
      data: { idle, loaded, ranDry },
    }
  },
}

/** Runs the work beside a worker process that has so many tasks queued. */
async function withWorker<T>(bench: Bench, queued: number, work: () => Promise<T>): Promise<T> {
  await bench.flush()
  await pushForeign(bench.redis, queued)
  const worker = await startService('services/workers/main.ts', { REDIS_URL: bench.redisUrl, WORKER_KINDS: 'sum' })
  try {
    while (queued > 0 && (await bench.redis.hlen('tasks')) === 0) await Bun.sleep(10)
    return await work()
  } finally {
    await worker.stop()
  }
}
