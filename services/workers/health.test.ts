import { afterEach, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Broker } from '#shared/broker/broker.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { BEAT_MS, keepHealthFile } from './health.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function setup() {
  const dir = mkdtempSync(join(tmpdir(), 'tasker-health-'))
  cleanups.push(() => rmSync(dir, { recursive: true }))
  const store = createSqliteBroker({ path: ':memory:' })
  cleanups.push(() => store.close())
  const clock = manualClock()
  const lines: string[] = []
  let isAway = false
  let isFull = false
  /** Resolves when the loop has come to rest. */
  let asleep = Promise.withResolvers<void>()
  const broker: Broker = {
    ...store,
    ping: () => (isAway || isFull ? Promise.reject(new StoreUnavailable('away', { refused: isFull })) : store.ping()),
  }
  const stop = new AbortController()
  const keep = (path: string) =>
    keepHealthFile(path, {
      ...{ broker, signal: stop.signal, log: createLogger('info', (line) => lines.push(line)) },
      clock: {
        now: clock.now,
        sleep(ms, signal) {
          asleep.resolve()
          return clock.sleep(ms, signal)
        },
      },
    })
  return {
    ...{ file: join(dir, 'healthy'), dir, lines, stop, keep },
    rest: () => asleep.promise,
    away(is: boolean) {
      isAway = is
    },
    full() {
      isFull = true
    },
    async beat() {
      asleep = Promise.withResolvers()
      clock.advance(BEAT_MS)
      await asleep.promise
    },
    time: () => new Date(clock.now()).toISOString(),
  }
}

test('the file of a worker is new while its store answers, grows old while it does not, and goes when it stops', async () => {
  const { file, stop, keep, rest, away, beat, time } = setup()
  const kept = keep(file)
  await rest()
  expect(readFileSync(file, 'utf8')).toBe(time())
  await beat()
  const last = time()
  expect(readFileSync(file, 'utf8')).toBe(last)
  away(true)
  await beat()
  await beat()
  expect(readFileSync(file, 'utf8')).toBe(last)
  away(false)
  await beat()
  expect(readFileSync(file, 'utf8')).toBe(time())
  stop.abort()
  await kept
  expect(existsSync(file)).toBe(false)
})

test('a file that cannot be written is told once, and ends nothing', async () => {
  const { dir, lines, stop, keep, rest, beat } = setup()
  const kept = keep(join(dir, 'missing', 'healthy'))
  await rest()
  await beat()
  expect(lines).toHaveLength(1)
  expect(lines[0]).toContain('WORKER_HEALTH_FILE')
  stop.abort()
  await kept
})

test('a store that refuses changes makes no worker sick: one that is started anew would mend nothing', async () => {
  const { file, stop, keep, rest, full, time } = setup()
  full()
  const kept = keep(file)
  await rest()
  expect(readFileSync(file, 'utf8')).toBe(time())
  stop.abort()
  await kept
})
