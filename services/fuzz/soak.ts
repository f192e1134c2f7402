import fc from 'fast-check'
import { Redis } from 'ioredis'
import { newKey } from '#shared/runtime/seal.ts'
import { endProcesses, freePort, residentBytes, startProcess } from '#shared/test/process.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { contracts } from '../workers/contracts.ts'
import { oddText } from './arbitrary.ts'
import { type Asked, ask, rawRequest, restRequest, sendBytes, serviceRequest } from './requests.ts'
import { queueBytes, recordBytes } from './rubbish.ts'

export interface SoakReport {
  seed: number
  seconds: number
  /** By service and class of status: how many answers. `closed` are connections that were closed without one. */
  answers: Record<string, Record<string, number>>
  /** Requests that were not answered in time. */
  late: number
  /** What was pushed to queues and written as final records. */
  rubbish: number
  /** By process, in MB: at the first and the last look, and the middle of all looks in the second and in the last quarter. */
  memory: Record<string, Record<'first' | 'last' | 'second quarter' | 'last quarter', number>>
  failures: string[]
}

const DEADLINE_MS = 10_000
const FLUSH_MS = 10_000
const REST_TOKEN = 'a-token'
const KINDS = Object.keys(contracts)

/**
 * By how much memory may be higher in the last quarter than in the second: by a fifth, and by a few MB where that is less. The first quarter warms up, and is not
 * looked at. Collections come when they please, so the middle of a quarter counts and not its peak; 1 KB that each of 300 requests a second leaves behind makes half
 * as much again in ten minutes.
 */
const MAY_GROW = { times: 1.2, mb: 16 }
/** In shorter runs memory says nothing: the heaps are still growing to their size. */
const JUDGE_FROM_S = 120

const service = fc.constantFrom('creator' as const, 'manager' as const)
const act = fc.oneof(
  { weight: 6, arbitrary: fc.record({ to: service, asked: serviceRequest }) },
  { weight: 3, arbitrary: fc.record({ to: fc.constant('rest' as const), asked: restRequest(REST_TOKEN) }) },
  { weight: 1, arbitrary: fc.record({ to: fc.oneof(service, fc.constant('rest' as const)), bytes: rawRequest }) },
  { weight: 1, arbitrary: fc.record({ queue: fc.constantFrom(...KINDS), bytes: queueBytes }) },
  {
    weight: 1,
    arbitrary: fc.record({ id: fc.oneof(oddText, fc.constantFrom('known', 'known.0')), bytes: recordBytes }),
  },
)

/** Starts every service as a process, on a Redis of their own, and sends them rubbish for a while. */
export async function runSoak(options: { seed: number; seconds: number; connections: number }): Promise<SoakReport> {
  const { seed, seconds, connections } = options
  const report: SoakReport = { seed, seconds, answers: {}, late: 0, rubbish: 0, memory: {}, failures: [] }
  const redis = await startRedis()
  const raw = new Redis(redis.url)
  // Its tasks fail at once, so that none of them stays.
  const provider = Bun.serve({
    ...{ port: 0, hostname: '127.0.0.1' },
    fetch: () => Response.json({ error: { message: 'No.' } }, { status: 400 }),
  })
  const ports = { creator: await freePort(), manager: await freePort(), rest: await freePort() }
  const common = {
    LOG_LEVEL: 'error',
    REDIS_URL: redis.url,
    TASKER_SECRET: newKey(),
    OPENAI_BASE_URL: `${provider.url}v1`,
  }
  const processes = {
    creator: startProcess('services/creator/main.ts', { ...common, CREATOR_PORT: `${ports.creator}` }),
    manager: startProcess('services/manager/main.ts', { ...common, MANAGER_PORT: `${ports.manager}` }),
    worker: startProcess('services/workers/main.ts', common),
    // In a database of its own: its callers may write what they like, wherever they like.
    rest: startProcess('services/rest/main.ts', {
      ...{ LOG_LEVEL: 'error', REDIS_URL: `${redis.url}/1`, REST_PORT: `${ports.rest}`, REST_TOKEN },
    }),
  }
  const urlOf = (name: keyof typeof ports) => `http://127.0.0.1:${ports[name]}`
  let stopping = false
  for (const [name, { ended, output }] of Object.entries(processes)) {
    void ended.then((how) => stopping || report.failures.push(`${name} ended with ${how}: ${output().slice(-2_000)}`))
  }

  function count(to: string, what: string): void {
    const counts = report.answers[to] ?? {}
    report.answers[to] = counts
    counts[what] = (counts[what] ?? 0) + 1
  }

  async function send(to: keyof typeof ports, { path, ...asked }: Asked): Promise<void> {
    const { status, headers } = await ask(
      // A wait is answered late on purpose: the shortest will do.
      { ...asked, path: path.replaceAll('wait=60', 'wait=1') },
      { fetch, url: urlOf(to), timeoutMs: DEADLINE_MS },
    )
    // The plain form of a task answers with the status that the task ended with.
    const isTasks = to === 'manager' && headers.get('Content-Type')?.startsWith('text/plain')
    judge(to, isTasks ? 200 : status, `${asked.method} ${path}`)
  }

  async function sendRaw(to: keyof typeof ports, bytes: Uint8Array): Promise<void> {
    const answer = await sendBytes(bytes, { port: ports[to], timeoutMs: DEADLINE_MS })
    const status = Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1])
    // 505 is Bun's, for versions of HTTP that there are not.
    if (status) judge(to, status === 505 ? 400 : status, Buffer.from(bytes).toString('latin1'))
    else count(to, 'closed')
  }

  function judge(to: string, status: number, what: string): void {
    count(to, status === 503 ? '503' : `${Math.floor(status / 100)}xx`)
    if (status >= 500 && status !== 503) report.failures.push(`${to} answered ${status} to ${what.slice(0, 500)}`)
  }

  async function connection(number: number, until: number): Promise<void> {
    for (let round = 0; performance.now() < until; round++) {
      for (const one of fc.sample(act, { seed: seed + number + round * connections, numRuns: 20 })) {
        if (performance.now() >= until) return
        try {
          if ('asked' in one) await send(one.to, one.asked)
          else if ('to' in one) await sendRaw(one.to, one.bytes)
          else {
            report.rubbish++
            if ('queue' in one) await raw.lpush(`${one.queue}_task_queue`, Buffer.from(one.bytes))
            else await raw.hset('tasks', one.id, Buffer.from(one.bytes))
          }
        } catch (error) {
          report.late++
          report.failures.push(`${String(error)} ${JSON.stringify(one).slice(0, 500)}`)
        }
      }
    }
  }

  /** A plain task is created, run and shown. */
  async function runPlain(): Promise<void> {
    const body = '{"num1":1,"num2":2}'
    const headers = { 'Content-Type': 'application/json' }
    const created = await fetch(`${urlOf('creator')}/sum`, { method: 'POST', body, headers })
    const { task_id } = (await created.json()) as { task_id: string }
    const shown = (await (await fetch(`${urlOf('manager')}/task/${task_id}?wait=20`)).json()) as { result: unknown }
    if (shown.result !== 3) report.failures.push(`A plain task came to ${JSON.stringify(shown)}`)
  }

  try {
    for (const name of ['creator', 'manager', 'rest'] as const) {
      while (!(await fetch(`${urlOf(name)}/healthz`).catch(() => null))?.ok);
    }
    await runPlain()
    const looks = Object.entries({ ...processes, redis }).map(([name, { pid }]) => ({
      name,
      pid,
      sizes: [] as number[],
    }))
    const look = () => {
      for (const { pid, sizes } of looks) sizes.push(Math.round(residentBytes(pid) / 1_048_576) || 0)
    }
    look()
    // Redis keeps every script that it was ever sent, too.
    const flush = () => void raw.pipeline().flushall().script('FLUSH').function('FLUSH').exec()
    const timers = [setInterval(look, 1_000), setInterval(flush, FLUSH_MS)]
    const until = performance.now() + seconds * 1_000
    await Promise.all(Array.from({ length: connections }, (_, number) => connection(number, until)))
    look()
    for (const timer of timers) clearInterval(timer)
    for (const { name, sizes } of looks) {
      const quarter = (n: number) =>
        medianOf(sizes.slice(Math.floor((n * sizes.length) / 4), Math.ceil(((n + 1) * sizes.length) / 4)))
      const [second, last] = [quarter(1), quarter(3)]
      report.memory[name] = {
        first: sizes[0] ?? 0,
        last: sizes.at(-1) ?? 0,
        'second quarter': second,
        'last quarter': last,
      }
      if (seconds >= JUDGE_FROM_S && last > Math.max(MAY_GROW.times * second, second + MAY_GROW.mb))
        report.failures.push(`The memory of ${name} grew from ${second} to ${last} MB.`)
    }
    await raw.flushall()
    await runPlain()
  } finally {
    stopping = true
    await endProcesses()
    raw.disconnect()
    await provider.stop(true)
    await redis.stop()
  }
  return report
}

function medianOf(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0
}
