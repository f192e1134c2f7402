import { Database } from 'bun:sqlite'
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Elsewhere, startElsewhere } from '#shared/test/broker-elsewhere.ts'
import { runtimes } from '#shared/test/runtimes.ts'
import { redisTestUrl } from '#shared/test/stores.ts'
import type { NewTask } from './broker.ts'
import { testBroker } from './suite/suite.ts'

/** The suite runs more of them on Bun; what differs here is the library below. */
const HISTORIES = 20

// In memory where that can be had: the disk is the same to all runtimes, and slow.
const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'tasker-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function newTask(fields: Partial<NewTask> = {}): NewTask {
  return { id: Bun.randomUUIDv7(), kind: 'sum', priority: 'normal', envelope: 'an envelope', ...fields }
}

for (const { name, command, missing } of runtimes) {
  describe.skipIf(command === null)(`on ${name}${command ? '' : missing}`, () => {
    // The tests and their clock are here, on Bun; the drivers that they judge are in a process of that runtime.
    let elsewhere: Elsewhere
    beforeAll(() => {
      elsewhere = startElsewhere(command ?? [])
    })
    afterAll(() => elsewhere.stop())

    // Bun's own are judged without a process between: sqlite.test.ts, redis.test.ts.
    if (name !== 'Bun') {
      testBroker(
        {
          name: 'SQLite in a file',
          open: ({ namespace, now }) => elsewhere.open({ type: 'sqlite', path: join(folder, `${namespace}.db`) }, now),
          lacks: { remoteEvents: 'events stay in the process; those who watch also poll' },
        },
        { numRuns: HISTORIES },
      )
      testBroker(
        {
          name: 'Redis over TCP',
          open: ({ namespace, now }) =>
            elsewhere.open({ type: 'redis', url: redisTestUrl(), namespace: `${namespace}:` }, now),
        },
        { numRuns: HISTORIES },
      )
    }

    describe('SQLite', () => {
      const newFile = () => join(folder, crypto.randomUUID(), 'tasker.db')
      const open = (path: string) => elsewhere.open({ type: 'sqlite', path, busyTimeoutMs: 20 }, () => 0)
      const said = (call: Promise<unknown>) =>
        call.then(
          () => 'nothing',
          (error: unknown) => String(error),
        )

      test('tells what failed by the name of its code, undoes all of the call, and goes on', async () => {
        const path = newFile()
        const broker = await open(path)
        const file = new Database(path)
        file.exec(`CREATE TRIGGER fails BEFORE INSERT ON tasks WHEN NEW.kind = 'bad'
          BEGIN SELECT RAISE(ABORT, 'failed'); END`)
        const [good, bad] = [newTask(), newTask({ kind: 'bad' })]
        const could = 'StoreUnavailable: The SQLite store could not enqueue'
        expect(await said(broker.enqueue([good, bad]))).toBe(`${could}: SQLITE_CONSTRAINT_TRIGGER.`)
        expect(await broker.get([good.id])).toEqual([null])
        file.exec('BEGIN IMMEDIATE')
        expect(await said(broker.enqueue([good]))).toBe(`${could}: SQLITE_BUSY.`)
        file.exec('COMMIT')
        expect(await said(broker.enqueue([good]))).toBe('nothing')
        file.exec('DROP TABLE tasks')
        expect(await said(broker.enqueue([newTask()]))).toBe(`${could}: SQLITE_ERROR.`)
        file.close()
        await broker.close()
      })

      test('says why a file cannot be opened', async () => {
        const text = join(folder, `${crypto.randomUUID()}.txt`)
        await Bun.write(text, 'This is a text, and no database. '.repeat(100))
        mkdirSync(join(folder, name))
        const newer = newFile()
        await (await open(newer)).close()
        const file = new Database(newer)
        file.exec('PRAGMA user_version = 99')
        file.close()
        expect(await said(open(text))).toMatch(/^StoreUnavailable: .*\.txt could not be opened: .*not a database/)
        expect(await said(open(join(folder, name)))).toMatch(
          /^StoreUnavailable: .* could not be opened: unable to open/,
        )
        expect(await said(open(newer))).toMatch(/^StoreUnavailable: .* could not be opened: The file has layout 99/)
      })

      test('waits for the disk, writes ahead, and keeps what it acknowledged when its process is killed', async () => {
        const path = newFile()
        const other = startElsewhere(command ?? [])
        const broker = await other.open({ type: 'sqlite', path }, () => 0)
        const task = newTask({ envelope: 'é\u2028💥' })
        await broker.enqueue([task])
        other.stop()
        const again = await open(path)
        expect(await again.get([task.id])).toMatchObject([{ live: { envelope: task.envelope } }])
        const file = new Database(path)
        expect(file.query('PRAGMA journal_mode').get()).toEqual({ journal_mode: 'wal' })
        file.close()
        await again.close()
      })

      test('gives numbers that a double cannot hold exactly', async () => {
        const broker = await open(newFile())
        const { id } = newTask()
        await broker.enqueue([newTask({ id })])
        const { tasks } = await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 1_000, takeBack: false })
        await broker.extend(
          tasks.map((task) => ({ ...task, progress: { done: 2 ** 53, total: 2 ** 60 } })),
          1_000,
        )
        expect(await broker.get([id])).toMatchObject([{ live: { progress: { done: 2 ** 53, total: 2 ** 60 } } }])
        await broker.close()
      })
    })
  })
}
