/** `bun run chaos`: hurts a whole fleet for a while, from a seed, and says what came of it. Exits with 1 when a promise was broken. */
import { parseArgs } from 'node:util'
import { type ChaosReport, runChaos } from './chaos.ts'

const { values } = parseArgs({
  allowNegative: true,
  options: {
    seed: { type: 'string', default: String(Math.floor(Math.random() * 1_000_000)) },
    seconds: { type: 'string', default: '60' },
    tasks: { type: 'string' },
    store: { type: 'string', default: 'redis' },
    aof: { type: 'string', default: 'everysec' },
    partitions: { type: 'string' },
    lease: { type: 'string', default: '9000' },
    every: { type: 'string', default: '300' },
    faults: { type: 'string' },
    rest: { type: 'boolean', default: true },
    verbose: { type: 'boolean', default: false },
  },
})
const { seed, seconds, tasks, lease, every, verbose } = values
const ofRedis = values.aof === 'always' ? 'always' : 'everysec'
const store = values.store === 'sqlite' || values.store === 'cluster' ? values.store : ofRedis
/** On a Cluster each is a slot: some for each primary. */
const partitions = values.partitions ?? (store === 'cluster' ? '6' : '1')

const restRoles = ['creator', 'manager', 'worker'] as const

const report = await runChaos({
  ...{ seed: Number(seed), seconds: Number(seconds), store, leaseMs: Number(lease), faultEveryMs: Number(every) },
  tasks: Number(tasks ?? (store === 'sqlite' ? 5_000 : 20_000)),
  ...{ verbose, partitions: Number(partitions), types: values.faults?.split(',') },
  roles:
    store === 'sqlite'
      ? ['all', 'worker']
      : ['creator', 'creator', 'manager', 'manager', 'worker', 'worker', 'worker', 'real worker'],
  restRoles: values.rest && store !== 'sqlite' && store !== 'cluster' ? restRoles : undefined,
})
console.log(JSON.stringify({ ...report, violations: report.violations.slice(0, 50) }, null, 1))
console.log(summary(report))
process.exitCode = report.violations.length > 0 ? 1 : 0

function summary({ options, faults, violations, ...report }: ChaosReport): string {
  const rules = Object.entries(Object.groupBy(violations, ({ rule }) => rule))
  return [
    `seed ${options.seed}, ${options.seconds} s, ${options.store}: ${report.ended} tasks ended, ${report.acknowledged} of them acknowledged as roots`,
    `faults: ${Object.entries(faults)
      .map(([type, count]) => `${count} ${type}`)
      .join(', ')}`,
    `stored without an acknowledgement: ${report.unacknowledged}`,
    `lost with a crash within its last second: ${report.lost}; taken back by one and run again: ${report.takenBack}`,
    `over REST: ${report.overRest.acknowledged} creations acknowledged, ${report.overRest.ended} tasks ended`,
    `given up with the one worker that might try: ${report.givenUp}; most attempts of one task: ${report.mostAttempts}`,
    `violations: ${violations.length}${rules.map(([rule, all]) => `\n  ${all?.length ?? 0} × ${rule}`).join('')}`,
  ].join('\n')
}
