import { freePort, residentBytes } from '../../shared/test/process.ts'
import { pushForeign } from '../contestants/foreign.ts'
import { type Answers, postBatches } from '../load/http.ts'
import type { Bench } from '../measure/bench.ts'
import { startService } from '../measure/server.ts'
import { spread } from '../measure/stats.ts'
import { number } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

/** So few tasks at once that one creator can offer twice what the worker clears, with the machine not busy yet. */
const SLOTS = '2'
const WARM_UP = 1_000

/** What was seen in one second: tasks that wait or run, and the memory of each process in bytes. */
interface Sample {
  readonly left: number
  readonly creator: number
  readonly manager: number
  readonly worker: number
  readonly redis: number
}
const MEMORY = ['creator', 'manager', 'worker', 'redis'] as const

export const overload: Scenario = {
  name: 'overload',
  async run(bench) {
    const tiny = bench.options.n !== null
    const seconds = tiny ? 1 : bench.size(300, 10)
    await bench.flush()
    const ports = { CREATOR_PORT: String(await freePort()), MANAGER_PORT: String(await freePort()) }
    const creatorUrl = `http://127.0.0.1:${ports.CREATOR_PORT}`
    const managerUrl = `http://127.0.0.1:${ports.MANAGER_PORT}`
    const env = { REDIS_URL: bench.redisUrl, ...ports, WORKER_KINDS: 'sum', WORKER_CONCURRENCY: SLOTS }
    const creator = await startService('services/creator/main.ts', env, `${creatorUrl}/readyz`)
    const manager = await startService('services/manager/main.ts', env, `${managerUrl}/readyz`)
    const worker = await startService('services/workers/main.ts', env)
    const count = () => countSums(managerUrl)
    const look = async (): Promise<Sample> => ({
      left: (await count()).left,
      creator: residentBytes(creator.pid),
      manager: residentBytes(manager.pid),
      worker: residentBytes(worker.pid),
      redis: (await bench.snapshot()).memoryBytes,
    })
    try {
      await clear(bench, count, WARM_UP)
      const before = tiny ? 1_000 : bench.size(30_000, 10_000)
      const from = performance.now()
      await clear(bench, count, before)
      const clears = before / ((performance.now() - from) / 1_000)

      const loaded: Sample[] = []
      let answers: Answers | undefined
      const load = postBatches(`${creatorUrl}/sum/batch`, 2 * clears, seconds).then((told) => {
        answers = told
      })
      while (!answers) {
        loaded.push(await look())
        await Promise.race([load, Bun.sleep(1_000)])
      }
      const drainFrom = performance.now()
      const drained: Sample[] = [await look()]
      while ((drained.at(-1)?.left ?? 0) > 0) {
        await Bun.sleep(500)
        drained.push(await look())
      }
      const drainS = (performance.now() - drainFrom) / 1_000
      const ended = (await count()).succeeded - before - WARM_UP
      return reportOf({ seconds, clears, answers, loaded, drained, drainS, ended })
    } finally {
      await Promise.all([creator, manager, worker].map((service) => service.stop()))
    }
  },
}

function reportOf(seen: {
  seconds: number
  clears: number
  answers: Answers
  loaded: Sample[]
  drained: Sample[]
  drainS: number
  ended: number
}) {
  const { seconds, clears, answers, loaded, drained, drainS, ended } = seen
  const peak = (samples: Sample[], of: keyof Sample) => Math.max(...samples.map((sample) => sample[of]))
  const half = Math.ceil(loaded.length / 2)
  const megabytes = (bytes: number) => number(bytes / 1e6)
  const others = Object.entries(answers.answers)
    .filter(([status]) => !['201', '429', '503'].includes(status))
    .reduce((sum, [, times]) => sum + times, 0)
  const growth = MEMORY.filter((one) => one !== 'redis')
    .map((one) => peak(loaded.slice(half), one) / peak(loaded.slice(0, half), one))
    .filter((value) => Number.isFinite(value))
  return {
    title: `overload: twice what a worker with ${SLOTS} slots clears (${number(clears)} tasks/s), for ${seconds} s (Tasker on Redis)`,
    columns: ['peak of memory, MB', 'first half', 'second half', 'while it drains'],
    rows: MEMORY.map((one) => [
      one,
      ...[loaded.slice(0, half), loaded.slice(half), drained].map((samples) => megabytes(peak(samples, one))),
    ]),
    goals: [
      { text: 'answers that are no 201, 429 or 503', measured: spread([others]), atMost: 0, unit: 'answers' },
      { text: 'accepted and not ended at last', measured: spread([answers.tasks - ended]), atMost: 0, unit: 'tasks' },
      { text: 'memory of creator, manager, worker, second half ÷ first', measured: spread(growth), atMost: 1.25 },
    ],
    notes: [
      `Answers: ${JSON.stringify(answers.answers)}, p50 ${number(answers.p50)} ms, p99 ${number(answers.p99)} ms for a batch of 50.`,
      `Accepted ${number(answers.tasks)}, ended ${number(ended)}; at most ${number(peak([...loaded, ...drained], 'left'))} waited, none after ${number(drainS)} s more.`,
    ],
    data: seen,
  }
}

/** Queues so many and waits until they have ended. */
async function clear(bench: Bench, count: () => Promise<Counts>, n: number): Promise<void> {
  const goal = (await count()).succeeded + n
  await pushForeign(bench.redis, n)
  while ((await count()).succeeded < goal) await Bun.sleep(20)
}

interface Counts {
  readonly left: number
  readonly succeeded: number
}

async function countSums(managerUrl: string): Promise<Counts> {
  const { kinds } = (await (await fetch(`${managerUrl}/stats`)).json()) as {
    kinds: { kind: string; queued: number; running: number; succeeded: number }[]
  }
  const { queued = 0, running = 0, succeeded = 0 } = kinds.find(({ kind }) => kind === 'sum') ?? {}
  return { left: queued + running, succeeded }
}
