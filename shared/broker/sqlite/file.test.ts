import { Database } from 'bun:sqlite'
import { afterEach, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import type { NewTask } from '../broker.ts'
import { LOOK_AT_FILES_MS, openFiles } from './file.ts'
import { createSqliteBroker } from './sqlite.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function newFile(): string {
  const dir = mkdtempSync(join(tmpdir(), 'tasker-file-'))
  cleanups.push(() => rmSync(dir, { recursive: true }))
  return join(dir, 'tasker.db')
}

function open(path: string, busyTimeoutMs = 20) {
  const broker = createSqliteBroker({ path, busyTimeoutMs })
  cleanups.push(() => broker.close())
  return broker
}

function newTask(): NewTask {
  const id = crypto.randomUUID()
  return { id, kind: 'sum', priority: 'normal', envelope: encodeEnvelope({ task_id: id, payload: 'x'.repeat(2_000) }) }
}

const LOST: [string, (path: string) => void][] = [
  ['deleted', (path) => rmSync(path)],
  [
    'replaced by another',
    (path) => {
      copyFileSync(path, `${path}.copy`)
      renameSync(`${path}.copy`, path)
    },
  ],
  ['deleted with its log', (path) => ['', '-wal', '-shm'].forEach((suffix) => void rmSync(path + suffix))],
  ['left without its log', (path) => rmSync(`${path}-wal`)],
]

describe('a file that is open', () => {
  test.each(LOST)(
    'and is %s takes nothing more: no creation is acknowledged, and the store says that it is not ready',
    async (_, lose) => {
      const path = newFile()
      const broker = open(path)
      await broker.enqueue([newTask()])
      await broker.ping()
      lose(path)
      await expect(broker.ping()).rejects.toThrow(/was (deleted|replaced by another file) while it was open/)
      let refusal: unknown = null
      // Those of the first moments are not looked at.
      while (refusal === null)
        refusal = await broker.enqueue([newTask()]).then(
          () => null,
          (error: unknown) => error,
        )
      expect(refusal).toBeInstanceOf(StoreUnavailable)
      expect(String(refusal)).toContain(path)
      for (const call of [() => broker.enqueue([newTask()]), () => broker.get(['a']), () => broker.stats(['sum'])]) {
        await expect(call()).rejects.toBeInstanceOf(StoreUnavailable)
      }
    },
  )

  test('is looked at once in a tenth of a second, and at once after a pause', () => {
    const path = newFile()
    createSqliteBroker({ path }).close()
    let time = 0
    const files = openFiles(path, () => time)
    rmSync(path)
    time = LOOK_AT_FILES_MS - 1
    expect(() => files.check()).not.toThrow()
    time = LOOK_AT_FILES_MS
    expect(LOOK_AT_FILES_MS).toBeLessThanOrEqual(100)
    expect(() => files.check()).toThrow('was deleted')
    // What was refused is looked at again each time.
    expect(() => files.check()).toThrow('was deleted')
  })

  test('is used again when it comes back to its place', async () => {
    const path = newFile()
    const broker = open(path)
    const task = newTask()
    await broker.enqueue([task])
    renameSync(path, `${path}.away`)
    await expect(broker.ping()).rejects.toThrow('was deleted')
    renameSync(`${path}.away`, path)
    await broker.ping()
    expect(await broker.enqueue([task])).toEqual([{ id: task.id, created: false }])
  })
})

// Bun's own SQLite leaves the log to others when it closes a file.
const sqlite3 = Bun.which('sqlite3')
test.skipIf(sqlite3 === null)(
  `to look at a file leaves the locks on it: a program that closes it is not the last, and leaves its log${sqlite3 ? '' : ' (skipped: sqlite3 is not installed)'}`,
  async () => {
    const path = newFile()
    const broker = open(path)
    await broker.enqueue([newTask()])
    await broker.ping()
    const program = Bun.spawn([sqlite3 ?? '', path, 'SELECT count(*) FROM tasks'], { stdout: 'pipe' })
    expect(await new Response(program.stdout).text()).toBe('1\n')
    expect(await program.exited).toBe(0)
    expect(existsSync(`${path}-wal`)).toBe(true)
    await broker.ping()
    expect(await broker.enqueue([newTask()])).toMatchObject([{ created: true }])
  },
)

describe('a store is not ready', () => {
  /** Writes zeros over a part of the file, after all that is in the log was moved into it. */
  async function zeroed(from: number, to: number | 'end') {
    const path = newFile()
    const broker = open(path)
    for (let n = 0; n < 20; n++) await broker.enqueue(Array.from({ length: 10 }, newTask))
    const raw = new Database(path)
    expect(raw.query('PRAGMA wal_checkpoint(TRUNCATE)').get()).toMatchObject({ busy: 0 })
    raw.close()
    const end = to === 'end' ? statSync(path).size : to
    writeSync(openSync(path, 'r+'), new Uint8Array(end - from), 0, end - from, from)
    return broker
  }

  test('when the pages of its file are zeroed, though it has them in memory', async () => {
    const broker = await zeroed(4_096, 'end')
    await expect(broker.ping()).rejects.toThrow(/SQLITE_(CORRUPT|NOTADB|IOERR)/)
  })

  test('when the beginning of its file is zeroed', async () => {
    const broker = await zeroed(0, 100)
    await expect(broker.ping()).rejects.toThrow('SQLITE_NOTADB')
  })

  test('while another connection has it locked, and is when that is over', async () => {
    const path = newFile()
    const broker = open(path)
    const other = new Database(path)
    other.exec('BEGIN IMMEDIATE')
    await expect(broker.ping()).rejects.toThrow('SQLITE_BUSY')
    other.exec('COMMIT')
    other.close()
    await broker.ping()
  })

  test('while the disk is full', async () => {
    const path = newFile()
    await createSqliteBroker({ path }).close()
    const code = `import { createSqliteBroker } from ${JSON.stringify(join(import.meta.dir, 'sqlite.ts'))}
      import { Database } from 'bun:sqlite'
      const broker = createSqliteBroker({ path: ${JSON.stringify(path)} })
      const filler = new Database(${JSON.stringify(path)})
      filler.exec('CREATE TABLE filler (x); INSERT INTO filler VALUES (0)')
      // Each is one page of the log: when there is no room for it, there is none for anything.
      const fill = filler.prepare('UPDATE filler SET x = x + 1')
      for (;;) try { fill.run() } catch { break }
      console.log(await broker.ping().then(() => 'ready', String))
      process.exit(0)`
    // A file that may not grow is what a full disk looks like to SQLite. The limit is in blocks of 512 bytes.
    const command = `trap '' XFSZ; ulimit -f 256; exec "$0" -e "$1"`
    const full = Bun.spawn(['sh', '-c', command, process.execPath, code], { stdout: 'pipe', stderr: 'inherit' })
    expect(await new Response(full.stdout).text()).toMatch(/^StoreUnavailable: .* could not ping: SQLITE_(FULL|IOERR)/)
  })

  test('while there is too little room for a large call', () => {
    const path = newFile()
    createSqliteBroker({ path }).close()
    const files = openFiles(path)
    expect(() => files.inspect()).not.toThrow()
    expect(() => files.inspect(Number.MAX_SAFE_INTEGER)).toThrow('is full')
  })

  test('asking changes nothing: not the layout, and no task', async () => {
    const path = newFile()
    const broker = open(path)
    await broker.enqueue([newTask()])
    const raw = new Database(path)
    const look = () => [raw.query('PRAGMA user_version').get(), raw.query('SELECT * FROM tasks').all()]
    const before = look()
    await broker.ping()
    expect(look()).toEqual(before)
    raw.close()
  })
})

describe('a file that cannot be opened is named, with its setting', () => {
  const opening = (path: string) => () => createSqliteBroker({ path }).close()

  test('of another program, which is left as it is', () => {
    for (const sql of [
      'CREATE TABLE notes (text)',
      'PRAGMA user_version = 2',
      'PRAGMA user_version = 1; CREATE TABLE tasks (id, title)',
      'PRAGMA user_version = 2; CREATE TABLE tasks (id, title)',
      'PRAGMA user_version = -3; CREATE TABLE tasks (id, title)',
    ]) {
      const path = newFile()
      const raw = new Database(path, { create: true })
      raw.exec(sql)
      const before = raw.query('SELECT sql FROM sqlite_schema').all()
      expect(opening(path)).toThrow(StoreUnavailable)
      expect(opening(path)).toThrow(new RegExp(`${path} .*of another program.*TASKER_DB`))
      expect(raw.query('SELECT sql FROM sqlite_schema').all()).toEqual(before)
      raw.close()
    }
  })

  test('that is none of SQLite’s', async () => {
    const path = newFile()
    await Bun.write(path, 'This is a text, and no database. '.repeat(100))
    expect(opening(path)).toThrow(new RegExp(`${path} .*TASKER_DB`))
    expect(readFileSync(path, 'utf8')).toStartWith('This is a text')
  })

  test('that this user may not write, or whose folder it may not', async () => {
    const readOnly = newFile()
    await createSqliteBroker({ path: readOnly }).close()
    const closedFolder = join(newFile(), '..', 'closed')
    mkdirSync(closedFolder, { mode: 0o755 })
    chmodSync(join(readOnly, '..'), 0o755)
    chmodSync(join(closedFolder, '..'), 0o755)
    chmodSync(readOnly, 0o444)
    chmodSync(closedFolder, 0o555)
    for (const path of [readOnly, join(closedFolder, 'tasker.db'), join(closedFolder, 'deeper', 'tasker.db')]) {
      const code = `import { createSqliteBroker } from ${JSON.stringify(join(import.meta.dir, 'sqlite.ts'))}
        try { createSqliteBroker({ path: ${JSON.stringify(path)} }); console.log('opened') } catch (error) { console.log(String(error)) }
        process.exit(0)`
      // The administrator may write everything.
      const asOther = process.getuid?.() === 0 ? ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'] : []
      const child = Bun.spawn([...asOther, process.execPath, '-e', code], { stdout: 'pipe', stderr: 'inherit' })
      expect(await new Response(child.stdout).text()).toMatch(
        new RegExp(`^StoreUnavailable: The SQLite store ${path} could not be opened: .*TASKER_DB`),
      )
    }
  })
})
