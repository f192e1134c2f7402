import { expect, test } from 'bun:test'
import type { Claimed } from '#shared/broker/broker.ts'
import type { Course } from './course.ts'
import { ParkedRuns } from './parked.ts'

/** A run that was given so many characters. */
function run(id: string, weight: number): Course {
  return { claimed: { id } as Claimed, weight, fits: () => true } as unknown as Course
}
const claimed = (id: string) => ({ id }) as Claimed

test('parents with large payloads are kept up to a number of bytes, the newest of them', () => {
  const kept = new ParkedRuns()
  for (let i = 0; i < 3_000; i++) kept.keep(run(`${i}`, 600_000), 0)
  const left = Array.from({ length: 3_000 }, (_, i) => i).filter((i) => kept.take(claimed(`${i}`)))
  expect(left.length * 600_000).toBeLessThanOrEqual(64_000_000)
  expect(left.length).toBeGreaterThan(50)
  expect(left.at(-1)).toBe(2_999)
})

test('one that is larger than all may be is kept while it is alone', () => {
  const kept = new ParkedRuns()
  kept.keep(run('huge', 1_000_000_000), 0)
  expect(kept.take(claimed('huge'))).toBeDefined()
})

test('one whose task ended elsewhere is dropped after a minute', () => {
  const kept = new ParkedRuns()
  kept.keep(run('old', 1), 0)
  kept.keep(run('new', 1), 30_000)
  kept.dropOld(60_000)
  expect(kept.take(claimed('old'))).toBeUndefined()
  expect(kept.take(claimed('new'))).toBeDefined()
})

test('a clock that was put back keeps nothing for ever', () => {
  const kept = new ParkedRuns()
  kept.keep(run('a', 1), 3_600_000)
  kept.dropOld(0)
  expect(kept.take(claimed('a'))).toBeUndefined()
})

test('goes on only where the claim fits', () => {
  const kept = new ParkedRuns()
  kept.keep({ ...run('a', 1), fits: () => false } as unknown as Course, 0)
  expect(kept.take(claimed('a'))).toBeUndefined()
  expect(kept.take(claimed('a'))).toBeUndefined()
})
