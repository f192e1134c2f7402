/** `bun run fuzz`: rubbish for every service, for a while, from a seed, and what came of it. Exits with 1 when something failed, hung, ended or grew. */
import { parseArgs } from 'node:util'
import { runSoak } from './soak.ts'

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: String(Math.floor(Math.random() * 1_000_000)) },
    minutes: { type: 'string', default: '10' },
    connections: { type: 'string', default: '8' },
  },
})
const { failures, ...report } = await runSoak({
  seed: Number(values.seed),
  seconds: Number(values.minutes) * 60,
  connections: Number(values.connections),
})
console.log(JSON.stringify(report, null, 1))
for (const failure of failures.slice(0, 50)) console.log(failure)
console.log(failures.length === 0 ? 'Nothing failed, hung, ended or grew.' : `${failures.length} failures`)
process.exitCode = failures.length > 0 ? 1 : 0
