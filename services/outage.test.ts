import { Database } from 'bun:sqlite'
import { afterEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { createApp as createCreator } from '#services/creator/app.ts'
import { contracts } from '#services/workers/contracts.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { holdResult } from '#shared/test/held-result.ts'
import { endProcesses, startProcess } from '#shared/test/process.ts'
import { startRedis } from '#shared/test/redis-server.ts'

const FULL_DISK = Bun.fileURLToPath(new URL('../shared/test/full-disk.ts', import.meta.url))
const REFUSED = { status: 503, retryAfter: '1' }
/** Of what was refused there is nothing: the sum that was held, and no sequence. */
const ONE_SUM = [
  { kind: 'sum', queued: 0, running: 0, succeeded: 1 },
  { kind: 'sequence', queued: 0, running: 0, succeeded: 0 },
]

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  await endProcesses()
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function newFile(): string {
  const dir = mkdtempSync(join(tmpdir(), 'tasker-outage-'))
  cleanups.push(() => rmSync(dir, { recursive: true }))
  return join(dir, 'tasker.db')
}

describe('a store that takes no changes: 503 with Retry-After, nothing accepted, and a result in hand is stored once it does', () => {
  test('SQLite that another connection has locked for too long', async () => {
    const path = newFile()
    const broker = createSqliteBroker({ path, busyTimeoutMs: 20 })
    cleanups.push(() => broker.close())
    const held = await holdResult(broker)
    const other = new Database(path)
    other.exec('BEGIN IMMEDIATE')
    expect(await held.postAll()).toEqual([REFUSED, REFUSED, REFUSED])
    await held.finish()
    expect((await broker.stats(['sum']))[0]).toMatchObject({ running: 1, succeeded: 0 })
    other.exec('COMMIT')
    other.close()

    const { record, ran } = await held.stored()
    expect(record).toMatchObject({ result: '3', status_code: 200, attempt: 1 })
    expect(ran).toBe(1)
    expect(await broker.stats(['sum', 'sequence'])).toMatchObject(ONE_SUM)
    expect((await held.post('/sum', { num1: 5, num2: 6 })).status).toBe(201)
  }, 30_000)

  test('SQLite on a disk that is full', async () => {
    const path = newFile()
    const limited = `trap '' XFSZ; ulimit -f 1024; exec "$0" "$1" "$2"`
    const full = startProcess(['sh', '-c', limited, process.execPath, FULL_DISK, path], {})
    await full.prints('Full.')
    // There is room for the journal once what is in it was moved into the file.
    const other = new Database(path)
    expect(other.query('PRAGMA wal_checkpoint(TRUNCATE)').get()).toMatchObject({ busy: 0 })
    other.close()

    expect(await full.ended).toBe(0)
    const { refused, record, ran, stats, status } = JSON.parse(full.output().split('Full.')[1] ?? '')
    expect(refused).toEqual([REFUSED, REFUSED, REFUSED])
    expect(record).toMatchObject({ result: '3', status_code: 200, attempt: 1 })
    expect(ran).toBe(1)
    expect(stats).toMatchObject(ONE_SUM)
    expect(status).toBe(201)
  }, 30_000)
})

test('a SQLite file that is locked or deleted is seen by /readyz, and nothing more is acknowledged into one that is gone', async () => {
  const path = newFile()
  const broker = createSqliteBroker({ path, busyTimeoutMs: 20 })
  cleanups.push(() => broker.close())
  const app = createCreator({ ...{ broker, contracts, keyring: null, auth: null }, managerUrl: '', log: silentLog })
  const ready = async () => (await app.request('/readyz')).status
  const headers = { 'Content-Type': 'application/json' }
  const post = async () => (await app.request('/sum', { method: 'POST', headers, body: '{"num1":1,"num2":2}' })).status

  const other = new Database(path)
  other.exec('BEGIN IMMEDIATE')
  expect(await ready()).toBe(503)
  other.exec('COMMIT')
  other.close()
  expect(await ready()).toBe(200)

  expect(await post()).toBe(201)
  rmSync(path)
  expect(await ready()).toBe(503)
  // Those of the first tenth of a second may still be taken.
  while ((await post()) !== 503);
  expect(await Promise.all([post(), post(), ready()])).toEqual([503, 503, 503])
  expect((await app.request('/healthz')).status).toBe(200)
}, 30_000)

test('a Redis that is silent for longer than a call may take: 503 with Retry-After in time, nothing by halves, and a result in hand is stored once it answers', async () => {
  const redis = await startRedis()
  cleanups.push(() => redis.stop())
  const broker = createRedisBroker(createTcpClient({ url: redis.url, commandTimeoutMs: 200 }), { resendAfterMs: [50] })
  cleanups.push(() => broker.close())
  const held = await holdResult(broker)
  await redis.kill('SIGSTOP')
  // It answers nothing: the time that a call may take is all that can end these.
  expect(await held.postAll()).toEqual([REFUSED, REFUSED, REFUSED])
  await held.finish()
  await redis.kill('SIGCONT')

  const { record, ran } = await held.stored()
  expect(record).toMatchObject({ result: '3', status_code: 200, attempt: 1 })
  expect(ran).toBe(1)
  // It may do what it was sent when it goes on: each call whole, and once, though each was sent twice.
  const [sums, sequences] = await broker.stats(['sum', 'sequence'])
  expect((sums?.queued ?? 0) + (sums?.succeeded ?? 0)).toBeLessThanOrEqual(3)
  expect([0, 3]).toContain(sequences?.queued ?? -1)
  expect((await held.post('/sum', { num1: 3, num2: 4 }, 'key')).status).toBe(201)
}, 30_000)

test('a Redis that is full, read-only or has a key of another type is seen by /readyz, and what refuses is not said to be silent', async () => {
  const server = await startRedis()
  cleanups.push(() => server.stop())
  const broker = createRedisBroker(createTcpClient({ url: server.url }), { resendAfterMs: [] })
  cleanups.push(() => broker.close())
  const redis = new Redis(server.url)
  cleanups.push(() => redis.disconnect())
  const app = createCreator({ ...{ broker, contracts, keyring: null, auth: null }, managerUrl: '', log: silentLog })
  const ready = async () => (await app.request('/readyz')).status
  const headers = { 'Content-Type': 'application/json' }
  const post = () => app.request('/sum', { method: 'POST', headers, body: '{"num1":1,"num2":2}' })
  const both = async () => [await ready(), (await post()).status]
  expect(await both()).toEqual([200, 201])

  await redis.config('SET', 'maxmemory', '1')
  expect(await both()).toEqual([503, 503])
  const said = await (await post()).text()
  expect(said).toContain('The store refuses: it is full, read-only or not set up for Tasker')
  expect(said).not.toMatch(/does not answer|OOM/)
  await redis.config('SET', 'maxmemory', '0')
  expect(await both()).toEqual([200, 201])

  await redis.rename('tasks:live', 'kept')
  await redis.set('tasks:live', '')
  expect(await both()).toEqual([503, 503])
  await redis.rename('kept', 'tasks:live')
  expect(await both()).toEqual([200, 201])

  await redis.replicaof('127.0.0.1', '1')
  expect(await both()).toEqual([503, 503])
  await redis.replicaof('NO', 'ONE')
}, 30_000)
