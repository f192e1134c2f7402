import { expect, test } from 'bun:test'
import { manualClock } from '#shared/test/manual-clock.ts'
import { nextTurn } from './clock.ts'
import { createLogger } from './log.ts'
import { createStrayLog } from './strays.ts'

function scene() {
  const lines: Record<string, unknown>[] = []
  const clock = manualClock()
  const log = createLogger('error', (line) => lines.push(JSON.parse(line)))
  return { lines, clock, tell: createStrayLog(log, clock) }
}

test('errors left to nobody are a line a second at most, and then a count', async () => {
  const { lines, clock, tell } = scene()
  for (let n = 0; n < 1_000; n++) tell(new Error('x'))
  expect(lines).toHaveLength(1)
  clock.advance(1_000)
  await nextTurn()
  expect(lines[1]).toMatchObject({ level: 'ERROR', errors: 999 })
  tell(new Error('x'))
  expect(lines).toHaveLength(2)
  clock.advance(1_000)
  await nextTurn()
  expect(lines[2]).toMatchObject({ errors: 1 })
  clock.advance(1_000)
  await nextTurn()
  tell(new RangeError('x'))
  expect(lines[3]).toMatchObject({ type: 'RangeError' })
  expect(lines).toHaveLength(4)
})

const rewritten = new Error('sk-a\n    at f (/sk-a:1:1)')
rewritten.message = 'short'
const shortened = new Error('a: b\n    at f (/sk-a:1:1)')
shortened.message = 'a'
const getters = Object.defineProperty(new Error('sk-a'), 'stack', {
  get() {
    throw new Error('sk-a')
  },
})
const data = Object.assign(new Error('m'), { stack: 'Error: m\n    at f (data:text/javascript,sk-a:1:1)' })

test.each([
  ['a text', 'sk-a'],
  ['nothing', undefined],
  ['an error with lines like places in its message', new Error('sk-a\n    at f (/sk-a:1:1)')],
  ['an error whose message was rewritten', rewritten],
  ['an error whose message was shortened', shortened],
  ['an error whose stack throws', getters],
  ['an error from source in a URL', data],
  ['an error of a class with an odd name', new { 'sk-a': class extends Error {} }['sk-a']()],
  ['an error that names itself', Object.assign(new Error('m'), { name: 'sk-a', stack: 'sk-a' })],
])('%s is told without what it says', (_, error) => {
  const { lines, tell } = scene()
  tell(error)
  expect(lines).toHaveLength(1)
  expect(JSON.stringify(lines)).not.toContain('sk-a')
})

test('an error is told by its class and the first three places of its stack', () => {
  const { lines, tell } = scene()
  const deep = (n: number): Error => (n === 0 ? new TypeError('one\ntwo') : ((e) => e)(deep(n - 1)))
  tell(deep(5))
  const place = expect.stringMatching(/strays\.test\.ts:\d+:\d+$/)
  expect(lines).toMatchObject([{ type: 'TypeError', at: [place, place, place] }])
})
