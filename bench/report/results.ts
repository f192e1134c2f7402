import { cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import type { Bench } from '../measure/bench.ts'
import { BENCH } from '../measure/run.ts'
import type { Report } from '../scenarios/scenario.ts'
import type { Bar } from './chart.ts'
import { isMet } from './report.ts'

/** What a reader of figures must know of where they come from. */
export async function environment(bench: Bench): Promise<Record<string, unknown>> {
  const info = await bench.redis.info('server')
  const { dependencies } = (await Bun.file(join(BENCH, 'package.json')).json()) as {
    dependencies: Record<string, string>
  }
  const versions = await Promise.all(
    Object.keys(dependencies).map(async (name) => {
      const { version } = (await Bun.file(join(BENCH, 'node_modules', name, 'package.json')).json()) as {
        version: string
      }
      return [name, version] as const
    }),
  )
  return {
    cpus: cpus().length,
    cpu: cpus()[0]?.model ?? 'unknown',
    memoryGb: Math.round(totalmem() / 1e9),
    platform: `${process.platform} ${process.arch}`,
    bun: Bun.version,
    redis: /redis_version:(\S+)/.exec(info)?.[1] ?? 'unknown',
    peers: Object.fromEntries(versions),
  }
}

/** Writes all that was measured, and gives the file's path. */
export async function writeResults(
  date: string,
  run: { environment: unknown; options: unknown; skipped: unknown; reports: ReadonlyMap<string, Report> },
): Promise<string> {
  const path = join(BENCH, 'results', `${date}.json`)
  const scenarios = Object.fromEntries(
    Array.from(run.reports, ([name, report]) => [
      name,
      { ...report, goals: report.goals.map((goal) => ({ ...goal, met: isMet(goal) })) },
    ]),
  )
  const { environment, options, skipped } = run
  await Bun.write(path, `${JSON.stringify({ date, environment, options, skipped, scenarios }, null, 2)}\n`)
  return path
}

/** Draws the bars, and gives the file's path. A quick run's chart stays beside its results: it is no figure to show. */
export async function writeChart(date: string, quick: boolean, bars: readonly Bar[]): Promise<string> {
  // After the install: the library is the bench's own.
  const { drawBars } = await import('./chart.ts')
  const path = quick ? join(BENCH, 'results', `${date}.svg`) : join(BENCH, '..', 'docs', 'performance.svg')
  await Bun.write(path, await drawBars({ title: 'Tasks a second, end to end (BullMQ = 1)', bars }))
  return path
}
