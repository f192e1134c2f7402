// What takes too long for the gate: `bun run long`, or `bun run long <name> …` for some of it. Ends with 1 when any of it failed.
import { execPath } from 'node:process'

const parts: Record<string, { command: string[]; env?: Record<string, string> }> = {
  programs: { command: ['test', 'shared/worker/programs.test.ts'], env: { PROGRAMS: '10000' } },
  loop: { command: ['test', 'shared/worker/loop.test.ts'], env: { LOOP_TASKS: '1000000' } },
  chaos: { command: ['shared/test/chaos/main.ts', '--seconds', '600', '--tasks', '20000', '--aof', 'always'] },
  'chaos-everysec': {
    command: ['shared/test/chaos/main.ts', '--seconds', '600', '--tasks', '20000', '--aof', 'everysec'],
  },
  'chaos-sqlite': {
    command: ['shared/test/chaos/main.ts', '--seconds', '600', '--tasks', '20000', '--store', 'sqlite'],
  },
  bytes: { command: ['test', 'services/bytes/bytes.test.ts'], env: { BYTES_RUNS: '60' } },
  'bytes-load': { command: ['services/bytes/main.ts'] },
  cluster: { command: ['test', 'shared/broker/redis/cluster.test.ts'], env: { CLUSTER_FAULTS: '1' } },
  'chaos-cluster': {
    command: ['shared/test/chaos/main.ts', '--seconds', '600', '--tasks', '20000', '--store', 'cluster'],
  },
  fuzz: { command: ['services/fuzz/main.ts', '--minutes', '10'] },
}

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !Object.hasOwn(parts, name))
if (unknown.length > 0) {
  console.error(`There is no ${unknown.join(', ')}: choose among ${Object.keys(parts).join(', ')}.`)
  process.exit(2)
}
const failed: string[] = []
for (const [name, { command, env }] of Object.entries(parts)) {
  if (asked.length > 0 && !asked.includes(name)) continue
  console.log(`> ${name}`)
  const run = Bun.spawn([execPath, ...command], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  if ((await run.exited) !== 0) failed.push(name)
}
console.log(failed.length > 0 ? `failed: ${failed.join(', ')}` : 'all passed')
process.exitCode = failed.length > 0 ? 1 : 0
