import { Database } from 'bun:sqlite'
import { afterAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import type { Broker, NewTask, Outcome } from '../broker.ts'
import { testBroker } from '../suite/suite.ts'
import { openDatabase } from './database.ts'
import { createEnding } from './ending.ts'
import { createLook } from './look.ts'
import { createQueue } from './queue.ts'
import { migrate } from './schema.ts'
import { createSqliteBroker } from './sqlite.ts'

const folder = mkdtempSync(join(tmpdir(), 'tasker-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

testBroker({
  name: 'SQLite in memory',
  open: async ({ now }) => createSqliteBroker({ path: ':memory:', now }),
  lacks: {
    secondConnection: 'a store in memory has one connection',
    remoteEvents: 'a store in memory has one connection',
  },
})

testBroker({
  name: 'SQLite in a file',
  open: async ({ namespace, now }) => createSqliteBroker({ path: join(folder, `${namespace}.db`), now }),
  destroy: async (namespace) => {
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(folder, `${namespace}.db${suffix}`), { force: true })
  },
  lacks: { remoteEvents: 'events stay in the process; those who watch also poll' },
})

const newFile = () => join(folder, crypto.randomUUID(), 'tasker.db')

function newTask(fields: Partial<NewTask> = {}): NewTask {
  const id = fields.id ?? Bun.randomUUIDv7()
  return { id, kind: 'sum', priority: 'normal', envelope: encodeEnvelope({ task_id: id, payload: null }), ...fields }
}

const request = { kinds: ['sum'], limit: 100, leaseMs: 30_000, takeBack: false }

function ended(task: { id: string; kind: string; token: string }): Outcome {
  return { ...task, type: 'end', state: 'succeeded', record: 'record', endedAt: 0, expiresAt: null }
}

/** Runs code in a process of its own, with a broker on the file as `broker`; what it prints comes line by line. */
function start(path: string, code: string) {
  const module = join(import.meta.dir, 'sqlite.ts')
  const opened = `import { createSqliteBroker } from ${JSON.stringify(module)}
    const broker = createSqliteBroker({ path: ${JSON.stringify(path)} })
    const request = ${JSON.stringify(request)}
    ${code}`
  return Bun.spawn([process.execPath, '-e', opened], { stdout: 'pipe', stderr: 'inherit' })
}

describe('a file that several brokers share', () => {
  test('hands out a task once', async () => {
    const path = newFile()
    const one = createSqliteBroker({ path })
    const two = createSqliteBroker({ path })
    const tasks = Array.from({ length: 10 }, () => newTask())
    await one.enqueue(tasks)
    const first = await two.claim({ ...request, limit: 4 })
    const second = await one.claim(request)
    expect([...first.tasks, ...second.tasks].map(({ id }) => id)).toEqual(tasks.map(({ id }) => id))
    expect((await two.claim(request)).tasks).toEqual([])
    await one.close()
    await two.close()
  })

  test('hands out a task once to two processes', async () => {
    const path = newFile()
    const broker = createSqliteBroker({ path })
    const tasks = Array.from({ length: 500 }, () => newTask())
    await broker.enqueue(tasks)
    const code = `
      for (;;) {
        const { tasks } = await broker.claim({ ...request, limit: 3 })
        if (tasks.length === 0) break
        for (const { id } of tasks) console.log(id)
      }`
    const workers = [start(path, code), start(path, code)]
    const outputs = await Promise.all(workers.map((worker) => new Response(worker.stdout).text()))
    const taken = outputs.flatMap((output) => output.split('\n').filter((line) => line !== ''))
    expect(taken.toSorted()).toEqual(tasks.map(({ id }) => id).toSorted())
    await broker.close()
  })

  test('holds everything that was acknowledged to a process that was killed', async () => {
    const path = newFile()
    const code = `
      for (let n = 0; ; n++) {
        const id = 'task-' + n
        await broker.enqueue([{ id, kind: 'sum', priority: 'normal', envelope: '{}' }])
        console.log(id)
      }`
    const producer = start(path, code)
    let printed = ''
    for await (const bytes of producer.stdout) {
      printed += new TextDecoder().decode(bytes)
      if (printed.length > 1000) producer.kill('SIGKILL')
    }
    await producer.exited
    const acknowledged = printed.split('\n').slice(0, -1)
    const broker = createSqliteBroker({ path })
    const found = await broker.get(acknowledged)
    expect(acknowledged.length).toBeGreaterThan(50)
    expect(found.filter((one) => one?.live?.state !== 'queued')).toEqual([])
    await broker.close()
  })

  test('holds every task when it is opened again', async () => {
    const path = newFile()
    const before = createSqliteBroker({ path, now: () => 1_000 })
    const [parent, done, running, queued, delayed] = [
      newTask({ kind: 'sequence' }),
      newTask(),
      newTask(),
      newTask(),
      newTask({ dueAt: 5_000 }),
    ]
    await before.enqueue([parent, done, running, queued, delayed])
    const claimed = await before.claim({ ...request, limit: 2 })
    const sequences = (await before.claim({ ...request, kinds: ['sequence'] })).tasks
    const child = newTask({ id: `${parent.id}.0`, kind: 'chat', parent: { id: parent.id, kind: 'sequence' } })
    const call = { type: 'call', children: [child], records: [{ id: `${parent.id}.1`, record: 'step' }] } as const
    await before.settle([
      ...claimed.tasks.slice(0, 1).map(ended),
      ...sequences.map((one) => ({
        ...one,
        ...call,
        calls: 2,
        steps: 1,
        order: '',
        park: true,
        wakeAt: null,
        awaits: null,
      })),
    ])
    const all = [parent, done, running, queued, delayed, child, { id: `${parent.id}.1` }].map(({ id }) => id)
    const look = async (broker: Broker) => [await broker.get(all), await broker.stats(['sum', 'sequence', 'chat'])]
    const expected = await look(before)
    await before.close()

    const after = createSqliteBroker({ path, now: () => 1_000 })
    expect(await look(after)).toEqual(expected)
    expect((await after.settle(claimed.tasks.slice(1).map(ended))).refused).toEqual([])
    expect((await after.claim(request)).tasks.map(({ id }) => id)).toEqual([queued.id])
    await after.close()
  })

  test('is let go of when the last broker is closed', async () => {
    const path = newFile()
    const broker = createSqliteBroker({ path })
    await broker.enqueue([newTask()])
    expect(existsSync(`${path}-wal`)).toBe(true)
    await broker.close()
    expect(existsSync(`${path}-wal`)).toBe(false)
  })

  test('lets a process end that still subscribes', async () => {
    const subscriber = start(newFile(), `await broker.subscribe(['sum'], () => {})`)
    expect(await subscriber.exited).toBe(0)
  })
})

describe('a file that cannot be used', () => {
  test('of the first layout is brought up to date, and its tasks go on', async () => {
    const path = newFile()
    mkdirSync(dirname(path), { recursive: true })
    const old = new Database(path, { create: true })
    old.exec(`
      CREATE TABLE tasks (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, state TEXT NOT NULL, priority INTEGER NOT NULL, parent TEXT,
        position INTEGER, at INTEGER, token TEXT, attempts INTEGER NOT NULL DEFAULT 0, calls INTEGER NOT NULL DEFAULT 0,
        steps INTEGER NOT NULL DEFAULT 0, pending INTEGER NOT NULL DEFAULT 0, started_at INTEGER, done INTEGER, total INTEGER,
        expires_at INTEGER, envelope TEXT, record TEXT
      );
      CREATE INDEX tasks_queued ON tasks (kind, priority, position DESC) WHERE position IS NOT NULL;
      CREATE INDEX tasks_at ON tasks (kind, state, at) WHERE at IS NOT NULL;
      CREATE INDEX tasks_expiring ON tasks (expires_at) WHERE expires_at IS NOT NULL;
      PRAGMA user_version = 1;
    `)
    const child = newTask({ id: 'p.0', parent: { id: 'p', kind: 'sequence' } })
    const insert = old.prepare(`
      INSERT INTO tasks (id, kind, state, priority, parent, position, at, calls, pending, started_at, envelope)
      VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?)`)
    insert.run('p', 'sequence', 'waiting', null, null, 8_640_000_000_000_000, 1, 1, 5, newTask({ id: 'p' }).envelope)
    insert.run('p.0', 'sum', 'queued', 'p', 1, null, 0, 0, null, child.envelope)
    old.close()

    const broker = createSqliteBroker({ path })
    const claim = (kind: string) => broker.claim({ kinds: [kind], limit: 1, leaseMs: 1_000, takeBack: false })
    const [running] = (await claim('sum')).tasks
    const ends = { type: 'end', state: 'succeeded', record: '{"result":"1","status_code":200}' } as const
    await broker.settle([
      {
        id: 'p.0',
        kind: 'sum',
        token: running?.token ?? '',
        parent: child.parent,
        ...ends,
        endedAt: 9,
        expiresAt: null,
      },
    ])
    expect((await claim('sequence')).tasks).toMatchObject([{ id: 'p', attempt: 1, calls: 1, order: '' }])
    await broker.close()
  })

  test('is refused when a newer version made it, and left as it is', () => {
    const path = join(folder, `${crypto.randomUUID()}.db`)
    const raw = new Database(path, { create: true })
    raw.exec('PRAGMA user_version = 99')
    expect(() => createSqliteBroker({ path })).toThrow(StoreUnavailable)
    expect(() => createSqliteBroker({ path })).toThrow('layout 99')
    expect(raw.query('PRAGMA user_version').get()).toEqual({ user_version: 99 })
    expect(raw.query('SELECT count(*) AS tables FROM sqlite_schema').get()).toEqual({ tables: 0 })
    raw.close()
  })

  test('is refused when it is no database, or no folder can be made for it', async () => {
    const path = join(folder, `${crypto.randomUUID()}.txt`)
    await Bun.write(path, 'This is a text, and no database. '.repeat(100))
    expect(() => createSqliteBroker({ path })).toThrow(StoreUnavailable)
    expect(() => createSqliteBroker({ path: join(path, 'tasker.db') })).toThrow(StoreUnavailable)
  })

  test('fails calls with the operation and a code, never with data, and undoes all of the call', async () => {
    const path = newFile()
    const broker = createSqliteBroker({ path })
    const raw = new Database(path)
    raw.exec(`CREATE TRIGGER fails BEFORE INSERT ON tasks WHEN NEW.kind = 'bad'
      BEGIN SELECT RAISE(ABORT, 'failed'); END`)
    const good = newTask()
    const bad = newTask({ kind: 'bad', envelope: 'private' })
    const error = await broker.enqueue([good, bad]).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(StoreUnavailable)
    expect(Bun.inspect(error)).toContain('The SQLite store could not enqueue: SQLITE_CONSTRAINT_TRIGGER.')
    expect((error as Error).message).not.toContain('private')
    expect(await broker.get([good.id, bad.id])).toEqual([null, null])
    expect(await broker.enqueue([good])).toEqual([{ id: good.id, created: true }])
    raw.close()
    await broker.close()
  })

  test('refuses while another process writes for too long, and goes on when it is done', async () => {
    const path = newFile()
    const broker = createSqliteBroker({ path, busyTimeoutMs: 20 })
    const writer = new Database(path)
    writer.exec('BEGIN IMMEDIATE')
    const task = newTask()
    const error = await broker.enqueue([task]).catch((error: unknown) => error)
    expect(String(error)).toBe('StoreUnavailable: The SQLite store could not enqueue: SQLITE_BUSY.')
    expect(await broker.get([task.id])).toEqual([null])
    writer.exec('COMMIT')
    writer.close()
    expect(await broker.enqueue([task])).toEqual([{ id: task.id, created: true }])
    await broker.close()
  })

  test('takes no new task when the disk is full, loses none, and goes on when there is room', async () => {
    const path = newFile()
    await createSqliteBroker({ path }).close()
    const module = join(import.meta.dir, 'sqlite.ts')
    const code = `import { createSqliteBroker } from ${JSON.stringify(module)}
      const broker = createSqliteBroker({ path: ${JSON.stringify(path)} })
      let accepted = 0
      for (;;) {
        const id = 'full-' + accepted
        const task = { id, kind: 'sum', priority: 'normal', envelope: 'x'.repeat(20_000) }
        const error = await broker.enqueue([task]).then(() => null, (error) => error)
        if (error) { console.log(JSON.stringify({ accepted, error: String(error) })); process.exit(0) }
        accepted++
      }`
    // A file that may not grow is what a full disk looks like to SQLite. The limit is in blocks of 512 bytes.
    const command = `trap '' XFSZ; ulimit -f 1024; exec "$0" -e "$1"`
    const full = Bun.spawn(['sh', '-c', command, process.execPath, code], { stdout: 'pipe', stderr: 'inherit' })
    const { accepted, error } = JSON.parse(await new Response(full.stdout).text())
    expect(error).toMatch(/^StoreUnavailable: The SQLite store could not enqueue: SQLITE_(FULL|IOERR)/)
    expect(accepted).toBeGreaterThan(5)
    const broker = createSqliteBroker({ path })
    expect((await broker.stats(['sum']))[0]?.queued).toBe(accepted)
    expect(await broker.enqueue([newTask()])).toMatchObject([{ created: true }])
    await broker.close()
  })
})

test('what comes back is run by due time, whether it was running, delayed or asleep', async () => {
  let time = 0
  const broker = createSqliteBroker({ path: ':memory:', now: () => time })
  const running = newTask()
  const asleep = newTask()
  await broker.enqueue([running, asleep])
  const { tasks } = await broker.claim({ ...request, leaseMs: 2_000 })
  await broker.settle(
    tasks.slice(1).map(
      (one) =>
        ({
          ...one,
          type: 'call',
          children: [],
          records: [],
          steps: 0,
          park: true,
          wakeAt: 3_000,
          awaits: null,
        }) as const,
    ),
  )
  const first = newTask({ dueAt: 1_000 })
  const last = newTask({ dueAt: 4_000 })
  await broker.enqueue([last, first, newTask({ id: 'queued' })])
  time = 4_000
  const back = await broker.claim({ ...request, takeBack: true })
  expect(back.tasks.map(({ id }) => id)).toEqual([first.id, running.id, asleep.id, last.id, 'queued'])
  await broker.close()
})

test('a task that ends leaves no envelope in the file', async () => {
  const path = newFile()
  const broker = createSqliteBroker({ path })
  const tasks = [newTask(), newTask()]
  await broker.enqueue(tasks)
  const { tasks: claimed } = await broker.claim({ ...request, limit: 1 })
  await broker.settle(claimed.map(ended))
  await broker.cancel(
    tasks.slice(1).map(({ id, kind }) => ({ id, kind, record: 'record', endedAt: 0, expiresAt: null })),
  )
  const raw = new Database(path)
  expect(raw.query('SELECT state, envelope FROM tasks ORDER BY seq').all()).toEqual([
    { state: 'succeeded', envelope: null },
    { state: 'cancelled', envelope: null },
  ])
  raw.close()
  await broker.close()
})

test('no statement reads the whole table', () => {
  const db = openDatabase(':memory:', 0)
  migrate(db)
  const plans: string[] = []
  const explaining = {
    ...db,
    prepare: <Row>(sql: string) => {
      const plan = db.prepare<{ detail: string }>(`EXPLAIN QUERY PLAN ${sql}`).all()
      plans.push(...plan.map(({ detail }) => detail))
      return db.prepare<Row>(sql)
    },
  }
  const queue = createQueue(explaining)
  createEnding(explaining, queue)
  createLook(explaining)
  expect(plans.filter((plan) => plan.startsWith('SEARCH')).length).toBeGreaterThan(10)
  expect(plans.filter((plan) => plan.startsWith('SCAN'))).toEqual([])
  db.close()
})

test('counts of many tasks are right, and let others have a turn between their statements', async () => {
  const path = newFile()
  await createSqliteBroker({ path }).close()
  const raw = new Database(path)
  const fill = (count: number, columns: string, values: string) =>
    raw.run(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})
      INSERT INTO tasks (id, kind, ${columns}) SELECT 't' || hex(randomblob(8)), 'sum', ${values} FROM n`)
  fill(120_000, 'priority, state, record, at', "1, 'succeeded', 'r', i / 1000")
  fill(50_000, 'priority, state, record, at', "1, 'failed', 'r', i")
  // All of one moment.
  fill(70_000, 'priority, state, record, at', "1, 'cancelled', 'r', 7")
  fill(100_000, 'priority, state, envelope, position', "1, 'queued', '{}', i")
  fill(1, 'priority, state, envelope, position', "2, 'queued', '{}', 1")
  raw.close()
  const broker = createSqliteBroker({ path, now: () => 60_100 })
  let turns = 0
  const turn = () => {
    turns++
    timer = setImmediate(turn)
  }
  let timer = setImmediate(turn)
  const [stats] = await broker.stats(['sum'])
  clearImmediate(timer)
  expect(stats).toMatchObject({ queued: 100_001, running: 0, succeeded: 120_000, failed: 50_000, cancelled: 70_000 })
  expect(stats?.lastMinute).toEqual({ succeeded: 19_001, failed: 49_900 })
  expect(turns).toBeGreaterThan(0)
  await broker.close()
})

test('a log that has grown beside a reader is cut when it begins anew', async () => {
  const path = newFile()
  const broker = createSqliteBroker({ path })
  const reader = new Database(path)
  reader.run('BEGIN')
  reader.query('SELECT count(*) FROM tasks').get()
  const envelope = 'x'.repeat(1_000_000)
  const add = () => broker.enqueue([newTask({ envelope })])
  const logBytes = () => statSync(`${path}-wal`).size
  while (logBytes() < 40_000_000) await add()
  reader.run('COMMIT')
  // The next to write moves the log into the file; the one after it begins anew.
  for (let i = 0; i < 3; i++) await add()
  expect(logBytes()).toBeLessThanOrEqual(16_777_216)
  reader.close()
  await broker.close()
})

test('a file gives back what is free, when that is much of it', async () => {
  const path = newFile()
  const broker = createSqliteBroker({ path })
  const tasks = Array.from({ length: 60 }, () => newTask({ envelope: 'x'.repeat(1_000_000) }))
  for (const task of tasks) await broker.enqueue([task])
  await broker.cancel(tasks.map(({ id, kind }) => ({ id, kind, record: 'record', endedAt: 0, expiresAt: null })))
  const pages = () => {
    const raw = new Database(path)
    const { page_count } = raw.query('PRAGMA page_count').get() as { page_count: number }
    raw.close()
    return page_count
  }
  const before = pages()
  for (let i = 0; i < 100; i++) await broker.sweep(100)
  // What is left is kept for what comes next.
  expect(pages()).toBeLessThan(before / 2)
  expect(pages()).toBeGreaterThan(3_800)
  expect(await broker.get(tasks.slice(0, 1).map(({ id }) => id))).toMatchObject([{ record: 'record' }])
  await broker.close()
})

test('a file that was made without giving back space goes on without it', async () => {
  const path = newFile()
  mkdirSync(dirname(path), { recursive: true })
  const raw = new Database(path, { create: true })
  raw.run('PRAGMA journal_mode = WAL')
  const db = openDatabase(':memory:', 0)
  migrate(db)
  const sql = db.prepare<{ sql: string }>(
    "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'",
  )
  for (const one of sql.all()) raw.run(one.sql)
  const version = db.prepare<{ user_version: number }>('PRAGMA user_version').get()
  raw.run(`PRAGMA user_version = ${version?.user_version}`)
  raw.close()
  db.close()
  const broker = createSqliteBroker({ path })
  const tasks = Array.from({ length: 30 }, () => newTask({ envelope: 'x'.repeat(1_000_000) }))
  for (const task of tasks) await broker.enqueue([task])
  await broker.cancel(tasks.map(({ id, kind }) => ({ id, kind, record: 'record', endedAt: 0, expiresAt: null })))
  expect(await broker.sweep(100)).toEqual({ expired: [], foreign: [] })
  // What is free is used again.
  const size = () => statSync(path).size
  const before = size()
  for (const { envelope } of tasks.slice(0, 20)) await broker.enqueue([newTask({ envelope })])
  expect(size()).toBeLessThan(before + 2_000_000)
  await broker.close()
})
