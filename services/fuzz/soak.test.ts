import { afterEach, expect, test } from 'bun:test'
import { endProcesses } from '#shared/test/process.ts'
import { runSoak } from './soak.ts'

afterEach(endProcesses)

// The short form of `bun run fuzz`.
test('processes that are sent rubbish answer all of it in time, and go on', async () => {
  const seed = Number(process.env['FUZZ_SEED'] || 2026)
  const { answers, failures, rubbish, memory } = await runSoak({ seed, seconds: 2, connections: 4 })
  expect(failures).toEqual([])
  // Else nobody was asked.
  expect(Object.keys(answers).toSorted()).toEqual(['creator', 'manager', 'rest'])
  expect(rubbish).toBeGreaterThan(0)
  expect(Object.keys(memory)).toEqual(['creator', 'manager', 'worker', 'rest', 'redis'])
}, 60_000)
