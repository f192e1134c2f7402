import type { Entry } from '../contestants/contestants.ts'
import type { Bench } from '../measure/bench.ts'
import { alternate, type Rounds } from '../measure/rounds.ts'
import type { Run } from '../measure/run.ts'
import { pairwise, type Spread, spread } from '../measure/stats.ts'
import { number, range, ratio } from '../report/format.ts'
import type { Goal, Report } from './scenario.ts'

export type Body = 'end-to-end' | 'worker'

/** In a quick run only those that its goal compares, and the nearest. */
const QUICK_WORKERS = ['tasker-redis', 'bullmq', 'bee-queue', 'limit']

/** Each is measured once in a bench: other scenarios derive from it. */
const measured = new WeakMap<Bench, Map<Body, Promise<Rounds<Run>>>>()

export function throughput(bench: Bench, body: Body): Promise<Rounds<Run>> {
  const known = measured.get(bench) ?? new Map<Body, Promise<Rounds<Run>>>()
  measured.set(bench, known)
  const rounds = known.get(body) ?? measure(bench, body)
  known.set(body, rounds)
  return rounds
}

function measure(bench: Bench, body: Body): Promise<Rounds<Run>> {
  const quickly = bench.options.quick && body === 'worker'
  const entries = bench
    .entries(quickly ? QUICK_WORKERS : undefined)
    .filter(({ endToEndOnly }) => body === 'end-to-end' || !endToEndOnly)
  return alternate(bench, entries, async (entry) => {
    const n = sizeFor(bench, entry)
    const run = await bench.run(
      entry,
      body === 'worker'
        ? [
            ['fill', n],
            ['worker', n],
          ]
        : [['end-to-end', n]],
    )
    if (run.stored < n) throw new Error(`Only ${run.stored} of ${n} results are stored.`)
    return run
  })
}

function sizeFor(bench: Bench, { share = 1 }: Entry): number {
  return Math.max(20, Math.round(bench.size(50_000, 10_000) * share))
}

/** Tasks a second. */
export function rateOf(run: Run | null): number | null {
  return run && run.ms > 0 ? (run.n / run.ms) * 1_000 : null
}

export function ratesOf(rounds: Rounds<Run>, name: string): (number | null)[] {
  return (rounds.of[name] ?? []).map(rateOf)
}

export function ratioOf(rounds: Rounds<Run>, ours: string, theirs: string): Spread | null {
  return pairwise(ratesOf(rounds, ours), ratesOf(rounds, theirs))
}

export function storeCpuMs({ marks }: Run): number {
  return (marks['after']?.cpuMs ?? 0) - (marks['before']?.cpuMs ?? 0)
}

export function throughputReport(title: string, rounds: Rounds<Run>, goals: readonly Goal[]): Report {
  const rows = rounds.entries.map(({ name, title }) => {
    const runs = (rounds.of[name] ?? []).filter((run) => run !== null)
    const per = (of: (run: Run) => number) => spread(runs.map(of))?.median
    return [
      title,
      String(runs[0]?.n ?? '-'),
      range(spread(runs.flatMap((run) => rateOf(run) ?? []))),
      name === 'tasker-redis' ? '' : ratio(ratioOf(rounds, 'tasker-redis', name)),
      number(per((run) => run.rssBytes / 1e6)),
    ]
  })
  return {
    title,
    columns: ['', 'tasks', 'tasks/s', 'Tasker on Redis is', 'peak RSS, MB'],
    rows,
    goals,
    data: { runs: rounds.of, failures: rounds.failures },
  }
}
