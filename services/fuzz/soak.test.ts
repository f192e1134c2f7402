import { afterEach, expect, test } from 'bun:test'
import { endProcesses } from '#shared/test/process.ts'
import { runSoak } from './soak.ts'

afterEach(endProcesses)

// The short form of `bun run fuzz`.
test('processes that are sent rubbish answer all of it in time, and go on', async () => {
  const seed = Number(process.env['FUZZ_SEED'] || 2026)
  const { answers, failures, rubbish, memory } = await runSoak({ seed, seconds: 2, connections: 4 })
  expect(failures).toEqual([])
  expect(answers).toMatchObject({ creator: { '4xx': expect.any(Number) }, manager: { '2xx': expect.any(Number) } })
  expect(answers['rest']).toMatchObject({ '2xx': expect.any(Number), '4xx': expect.any(Number) })
  expect(rubbish).toBeGreaterThan(10)
  expect(Object.keys(memory)).toEqual(['creator', 'manager', 'worker', 'rest', 'redis'])
}, 60_000)
