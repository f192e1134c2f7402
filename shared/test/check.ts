// The gate. Its last line is "N passed, N failed": the tests' own sums, and every other step that fails counts as one.
import { startRedis } from './redis-server.ts'

const steps = [
  { name: 'format and lint', command: ['biome', 'check', '--error-on-warnings'] },
  { name: 'types', command: ['tsc', '-p', '.'] },
  { name: 'dead code', command: ['knip'] },
]

const failedSteps: string[] = []
for (const { name, command } of steps) {
  console.log(`> ${name}`)
  // Under Bun, so that the gate needs no Node.
  const step = Bun.spawn([process.execPath, 'run', '--bun', '--silent', ...command], {
    stdin: 'ignore',
    stdout: 'inherit',
    stderr: 'inherit',
  })
  if ((await step.exited) !== 0) failedSteps.push(name)
}

console.log('> tests')
const tests = await runTests()
for (const name of failedSteps) console.log(`FAILED: ${name}, see above`)

const failed = tests.failed + failedSteps.length
console.log(`${tests.passed} passed, ${failed} failed${tests.skipped > 0 ? `, ${tests.skipped} skipped` : ''}`)
process.exitCode = failed > 0 ? 1 : 0

async function runTests(): Promise<{ passed: number; failed: number; skipped: number }> {
  const given = process.env['REDIS_TEST_URL']
  const redis = given ? undefined : await startRedis().catch((error: unknown) => console.log(`${error}`))
  const url = given || redis?.url
  if (!url) return { passed: 0, failed: 1, skipped: 0 }
  const run = Bun.spawn([process.execPath, 'test'], {
    env: { ...process.env, REDIS_TEST_URL: url, ...(process.stdout.isTTY ? { FORCE_COLOR: '1' } : {}) },
    stdin: 'ignore',
    stdout: 'inherit',
    stderr: 'pipe',
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => run.kill())
  const decoder = new TextDecoder()
  let report = ''
  for await (const chunk of run.stderr) {
    process.stdout.write(chunk)
    report += decoder.decode(chunk, { stream: true })
  }
  const exitCode = await run.exited
  await redis?.stop()
  const [summary = ''] = Bun.stripANSI(report).match(/(^ *\d+ .*\n)+^Ran \d+ tests?/m) ?? []
  const count = (word: string) => Number(summary.match(new RegExp(`^ *(\\d+) ${word}$`, 'm'))?.[1] ?? 0)
  return {
    passed: count('pass'),
    failed: exitCode === 0 ? count('fail') : Math.max(1, count('fail')),
    skipped: count('skip') + count('todo'),
  }
}
