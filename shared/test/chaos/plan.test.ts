import { expect, test } from 'bun:test'
import { wholeUntil } from './journal.ts'
import { tasksIn } from './kinds.ts'
import { planCreations, planFaults } from './plan.ts'
import { createRandom } from './random.ts'

const creations = (seed: number) =>
  planCreations(createRandom(seed).fork('creations'), { tasks: 2_000, spanMs: 10_000, leaseMs: 3_000 })
const faults = (seed: number) =>
  planFaults(createRandom(seed).fork('faults'), {
    ...{ spanMs: 10_000, everyMs: 300, leaseMs: 3_000 },
    types: ['kill', 'long pause', 'redis kill'],
  })

test('the same seed makes the same tasks and the same faults, another one others', () => {
  expect(creations(1)).toEqual(creations(1))
  expect(creations(1)).not.toEqual(creations(2))
  expect(faults(1)).toEqual(faults(1))
  expect(faults(1)).not.toEqual(faults(2))
})

test('as many tasks are made as were asked for, and each fault comes at least once', () => {
  const made = creations(3).reduce((sum, { specs }) => sum + specs.reduce((all, spec) => all + tasksIn(spec), 0), 0)
  expect(made).toBeGreaterThanOrEqual(2_000)
  expect(made).toBeLessThan(2_300)
  expect(new Set(faults(3).map(({ type }) => type))).toEqual(new Set(['kill', 'long pause', 'redis kill']))
})

test('some tasks run for longer than a lease, and some workers stand still for longer', () => {
  const runs = creations(3).flatMap(({ specs }) => specs.map((spec) => (spec.kind === 'slow' ? spec.payload.ms : 0)))
  expect(runs.filter((ms) => ms > 3_000).length).toBeGreaterThanOrEqual(6)
  const pauses = faults(3).filter(({ type }) => type === 'long pause')
  expect(pauses.some(({ certain }) => certain)).toBe(true)
  expect(pauses.every(({ forMs }) => forMs > 3_000)).toBe(true)
})

test('a journal is cut where a command or a whole transaction ends', () => {
  const command = (...words: string[]) =>
    `*${words.length}\r\n${words.map((word) => `$${word.length}\r\n${word}\r\n`).join('')}`
  const first = command('SET', 'a', '1\r\n2')
  const transaction = command('MULTI') + command('SET', 'b', '1') + command('EXEC')
  const journal = Buffer.from(first + transaction)
  expect(wholeUntil(journal, journal.length)).toBe(journal.length)
  for (const size of [first.length, first.length + 20, journal.length - 1])
    expect(wholeUntil(journal, size)).toBe(first.length)
  expect(wholeUntil(journal.subarray(0, journal.length - 3), journal.length)).toBe(first.length)
  expect(wholeUntil(journal, first.length - 1)).toBe(0)
})
