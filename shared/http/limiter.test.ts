import { expect, test } from 'bun:test'
import { createLimiter } from './limiter.ts'

function setup(options: { maxKeys?: number } = {}) {
  let now = 1_000_000
  const limiter = createLimiter({ perSecond: 2, burst: 3 }, { now: () => now, ...options })
  const allowed = (key: string) => limiter.take(key).allowed
  return { limiter, allowed, pass: (ms: number) => (now += ms) }
}

test('a burst is allowed at once, and then so many a second', () => {
  const { limiter, allowed, pass } = setup()
  expect([allowed('a'), allowed('a'), allowed('a'), allowed('a')]).toEqual([true, true, true, false])
  expect(limiter.take('a')).toEqual({ allowed: false, remaining: 0, retryAfterMs: 500 })
  pass(499)
  expect(allowed('a')).toBe(false)
  pass(1)
  expect([allowed('a'), allowed('a')]).toEqual([true, false])
})

test('what was refused does not count', () => {
  const { allowed, pass } = setup()
  for (let n = 0; n < 100; n++) allowed('a')
  pass(500)
  expect(allowed('a')).toBe(true)
})

test('a bucket does not grow over its burst', () => {
  const { limiter, pass } = setup()
  limiter.take('a')
  pass(3_600_000)
  expect(limiter.take('a')).toEqual({ allowed: true, remaining: 2, retryAfterMs: 0 })
})

test('each key has a bucket of its own', () => {
  const { allowed } = setup()
  for (let n = 0; n < 4; n++) allowed('a')
  expect([allowed('a'), allowed('b')]).toEqual([false, true])
})

test('a clock that goes back neither fills nor blocks', () => {
  const { allowed, pass } = setup()
  for (let n = 0; n < 3; n++) allowed('a')
  pass(-60_000)
  expect(allowed('a')).toBe(false)
  pass(500)
  expect(allowed('a')).toBe(true)
})

test('memory is bounded, and who is busy is remembered', () => {
  const { limiter, allowed } = setup({ maxKeys: 10 })
  for (let n = 0; n < 3; n++) allowed('busy')
  for (let n = 0; n < 1_000; n++) {
    allowed(`once ${n}`)
    expect(allowed('busy')).toBe(false)
  }
  expect(limiter.size).toBe(10)
})
