import { expect, test } from 'bun:test'
import { createLogger, type LogSetting } from './log.ts'

const written = (level: LogSetting) => {
  const lines: string[] = []
  const log = createLogger(level, (line) => lines.push(line))
  log.debug('d')
  log.info('i', { task_id: 't1', n: 2 })
  log.warn('w')
  log.error('e {n}', { n: 1 })
  return lines.map((line) => JSON.parse(line))
}

test('a line is JSON with time, level, message and fields', () => {
  const [line] = written('info')
  expect(line).toEqual({
    '@timestamp': expect.stringMatching(/^\d{4}-.*Z$/),
    level: 'INFO',
    logger: 'tasker',
    message: 'i',
    task_id: 't1',
    n: 2,
  })
})

test('what is below the level is left out', () => {
  const messages = (level: LogSetting) => written(level).map(({ message }) => message)
  expect(messages('debug')).toEqual(['d', 'i', 'w', 'e {n}'])
  expect(messages('warn')).toEqual(['w', 'e {n}'])
  expect(messages('error')).toEqual(['e {n}'])
  expect(messages('silent')).toEqual([])
})

test('a field cannot break the line', () => {
  const lines: string[] = []
  const loop: Record<string, unknown> = {}
  loop['self'] = loop
  createLogger('info', (line) => lines.push(line)).info('m', { text: 'a\nb\u2028', loop, big: 1n })
  expect(lines).toHaveLength(1)
  expect(lines[0]).not.toContain('\n')
})
