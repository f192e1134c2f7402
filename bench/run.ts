/** `bun run bench`: measures Tasker beside others on this machine. See docs/performance.md. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { contestants } from './contestants/contestants.ts'
import { type Bench, openBench } from './measure/bench.ts'
import { BENCH } from './measure/run.ts'
import type { Bar } from './report/chart.ts'
import { textOf } from './report/report.ts'
import { environment, writeChart, writeResults } from './report/results.ts'
import type { Report } from './scenarios/scenario.ts'
import { scenarios } from './scenarios/scenarios.ts'
import { ratioOf, throughput } from './scenarios/throughput.ts'

const USAGE = `bun run bench [options]

  --quick            about two minutes: fewer tasks, 3 rounds; without it 5 rounds, half an hour
  --only <a,b>       these scenarios: ${scenarios.map(({ name }) => name).join(', ')}
  --peers <a,b>      beside these alone: ${contestants.flatMap(({ name, peer }) => (peer ? [name] : [])).join(', ')}
  --rounds <n>       so many rounds
  --n <n>            so many tasks in every run: to try a change, not for figures
`

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
    peers: { type: 'string' },
    rounds: { type: 'string' },
    n: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})
if (values.help) {
  console.log(USAGE)
  process.exit(0)
}

const listOf = (text: string | undefined) => text?.split(',').map((part) => part.trim()) ?? null
const peers = known(listOf(values.peers), contestants)
const only = known(listOf(values.only), scenarios)
const { quick } = values
const rounds = Number(values.rounds ?? (quick ? 3 : 5))
const n = values.n === undefined ? null : Number(values.n)
if (!Number.isInteger(rounds) || rounds < 1 || (n !== null && (!Number.isInteger(n) || n < 20))) {
  fail('--rounds takes a whole number from 1, --n one from 20.')
}

install()
const bench = await openBench({ quick, rounds, n, peers })
try {
  await measure(bench)
} finally {
  await bench.close()
}

async function measure(bench: Bench): Promise<void> {
  const date = new Date().toISOString().slice(0, 19).replaceAll(':', '')
  const where = await environment(bench)
  console.log(`${where['cpu']}, ${where['cpus']} CPUs; Bun ${where['bun']}, Redis ${where['redis']}; ${rounds} rounds`)
  for (const { entry, reason } of bench.skipped) console.log(`Skipped: ${entry.title}: ${reason}`)
  const reports = new Map<string, Report>()
  for (const scenario of scenarios) {
    if (only && !only.includes(scenario.name)) continue
    try {
      const report = await scenario.run(bench)
      reports.set(scenario.name, report)
      console.log(textOf(report))
    } catch (error) {
      console.log(`\n${scenario.name} failed: ${error instanceof Error ? error.message : String(error)}`)
      process.exitCode = 1
    }
  }
  const skipped = bench.skipped.map(({ entry, reason }) => ({ name: entry.name, reason }))
  console.log(
    `\nWritten: ${await writeResults(date, { environment: where, options: bench.options, skipped, reports })}`,
  )
  const bars = reports.has('end-to-end') ? await barsOf(bench) : []
  if (bars.length > 1) console.log(`Written: ${await writeChart(date, quick || n !== null, bars)}`)
}

/** End-to-end rates, with BullMQ's as 1; none without it. */
async function barsOf(bench: Bench): Promise<Bar[]> {
  const measured = await throughput(bench, 'end-to-end')
  return measured.entries.flatMap(({ name, title }) => {
    const ratio = ratioOf(measured, name, 'bullmq')
    return ratio ? [{ title, value: ratio.median, ours: name.startsWith('tasker') }] : []
  })
}

/** The bench has packages of its own, so that no peer becomes a dependency of the product. */
function install(): void {
  if (existsSync(join(BENCH, 'node_modules'))) return
  console.log('Installing what the bench compares with.')
  const { success } = Bun.spawnSync([process.execPath, 'install', '--frozen-lockfile'], {
    cwd: BENCH,
    stdout: 'inherit',
    stderr: 'inherit',
  })
  if (!success) fail('bun install failed in bench/.')
}

function known(names: string[] | null, all: readonly { name: string }[]): string[] | null {
  const unknown = names?.filter((name) => !all.some((one) => one.name === name)) ?? []
  if (unknown.length > 0) fail(`There is no ${unknown.join(', ')}: ${all.map(({ name }) => name).join(', ')}.`)
  return names
}

function fail(message: string): never {
  console.error(`bench: ${message}\n\n${USAGE}`)
  process.exit(2)
}
