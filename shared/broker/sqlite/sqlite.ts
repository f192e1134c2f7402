import { resolve } from 'node:path'
import { createSlices } from '#shared/runtime/slices.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import type { Broker, BrokerOptions, Lapsed } from '../broker.ts'
import { requireTimes } from '../times.ts'
import { createSpace, type Database, openDatabase } from './database.ts'
import { createEnding } from './ending.ts'
import { NO_FILES, type OpenFiles, openFiles } from './file.ts'
import { createLook } from './look.ts'
import { createProbe, isBusy, rollBack, withoutWaiting } from './probe.ts'
import { createQueue } from './queue.ts'
import { migrate } from './schema.ts'
import { createSignals, type News } from './signals.ts'

export interface SqliteBrokerOptions extends BrokerOptions {
  /** The file, made with its folder when it is missing; `:memory:` for a store that ends with the broker. */
  path: string
  /** How long a call waits for another process that is writing, in ms. Default 5,000. */
  busyTimeoutMs?: number
}

/**
 * A broker on one SQLite file, which several processes of one machine may share. Calls are synchronous inside: a call waits up to 5 s for
 * another process that is writing, and the event loop waits with it.
 *
 * @throws StoreUnavailable when the file cannot be opened, or was made by a newer version.
 */
export function createSqliteBroker(options: SqliteBrokerOptions): Broker {
  const { path, now = Date.now, busyTimeoutMs = 5_000 } = options
  const { db, files } = open(path, busyTimeoutMs)
  const queue = createQueue(db)
  const ending = createEnding(db, queue)
  const look = createLook(db)
  const space = createSpace(db)
  const signals = createSignals(db)
  const slices = createSlices()
  let closed = false

  /** A chain of calls would else be microtasks alone, and nothing but them would run. */
  async function read<T>(operation: string, body: () => T): Promise<T> {
    if (slices.isOver()) await slices.turn()
    if (closed) throw new StoreUnavailable(`The SQLite store is closed: ${operation}.`)
    files.check()
    return guard(operation, body)
  }

  const begin = db.prepare('BEGIN IMMEDIATE')
  const commit = db.prepare('COMMIT')

  function write<T>(operation: string, body: (news: News) => T): Promise<T> {
    return read(operation, () => {
      const news = signals.collect()
      begin.run()
      let result: T
      try {
        result = body(news)
        commit.run()
      } catch (error) {
        rollBack(db)
        throw error
      }
      news.tell()
      return result
    })
  }

  const forget = db.prepare('DELETE FROM tasks WHERE id = ? AND record IS NOT NULL')
  const probe = createProbe(db, { files, busyTimeoutMs })

  return requireTimes({
    enqueue: (tasks) =>
      write('enqueue', (news) => tasks.map((task) => ({ id: task.id, created: queue.add(task, now(), news) }))),

    claim: (request) => write('claim', (news) => queue.claim(request, now(), news)),

    settle: (outcomes, next) =>
      write('settle', (news) => ({
        refused: ending.settle(outcomes, now(), news),
        next: next ? queue.claim(next, now(), news) : null,
      })),

    async extend(leases, leaseMs) {
      const lapsed: Lapsed = { lost: [], cancelled: [] }
      for (let from = 0; from < leases.length; ) {
        const some = await write('extend', () => ending.extend(leases.slice(from), now() + leaseMs))
        lapsed.lost.push(...some.lost)
        lapsed.cancelled.push(...some.cancelled)
        from += some.count
      }
      return lapsed
    },

    get: (ids, options = {}) => read('get', () => look.get(ids, options)),

    cancel: (tasks) => write('cancel', (news) => ending.cancel(tasks, news)),

    remove: (tasks) =>
      write('remove', () => {
        for (const { id } of tasks) forget.run(id)
        // Nobody but a driver writes final records here: what is live has none.
        return []
      }),

    reserve: (tasks, leaseMs) =>
      write('reserve', () => tasks.map((task) => queue.reserve(task, now(), now() + leaseMs))),

    retry: (tasks) => write('retry', (news) => tasks.filter((task) => queue.reopen(task, news)).map((task) => task.id)),

    list: (query) => read('list', () => look.list(query)),

    async stats(kinds) {
      const steps = look.stats(kinds, now())
      for (;;) {
        const step = await read('stats', () => steps.next())
        if (step.done) return step.value
      }
    },

    kinds: () => read('kinds', () => look.kinds()),

    async sweep(limit) {
      const expired = await read('sweep', () => look.expired(now(), limit))
      if (await read('sweep', () => space.isWasted())) await read('sweep', () => space.giveBack())
      return { expired, foreign: [] }
    },

    subscribe: (kinds, wake) => read('subscribe', () => signals.subscribe(kinds, wake)),

    watch: (on) => read('watch', () => signals.watch(on)),

    emit: (chunks) =>
      read('emit', () => {
        for (const { id, chunk } of chunks) signals.emit({ type: 'chunk', id, chunk })
      }),

    async ping() {
      try {
        await read('ping', probe)
      } catch (error) {
        if (closed) throw new StoreUnavailable('The SQLite store is closed: ping.')
        throw told('ping', error)
      }
    },

    async close() {
      if (closed) return
      closed = true
      signals.close()
      db.close()
    },
  })
}

function open(path: string, busyTimeoutMs: number): { db: Database; files: OpenFiles } {
  let db: Database | undefined
  try {
    db = openDatabase(path, busyTimeoutMs)
    migrate(db)
    requireWritable(db, busyTimeoutMs)
    return { db, files: path === ':memory:' ? NO_FILES : openFiles(path) }
  } catch (error) {
    db?.close()
    const reason = error instanceof Error ? error.message : String(error)
    const code = error instanceof Error && 'code' in error ? String(error.code) : ''
    // Of the file system, and what SQLite makes of that.
    const isDenied = /^(E[A-Z]+|SQLITE_(CANTOPEN|READONLY|PERM|IOERR)\w*)$/.test(code)
    const hint = isDenied ? ', and this user must be able to write it and its folder' : ''
    const what = `The SQLite store ${path === ':memory:' ? path : resolve(path)} could not be opened`
    const message = `${what}: ${reason.replace(/\.$/, '')}. TASKER_DB names the file${hint}.`
    throw new StoreUnavailable(message, { cause: error })
  }
}

/** Fails where the file can only be read. That another process is writing just now is no reason. */
function requireWritable(db: Database, busyTimeoutMs: number): void {
  try {
    withoutWaiting(db, busyTimeoutMs, () => {
      db.exec('BEGIN IMMEDIATE')
      db.exec('ROLLBACK')
    })
  } catch (error) {
    if (!isBusy(error)) throw error
  }
}

/** Turns what SQLite throws into the port's error; anything else is a bug and passes. Its codes and messages carry no values. */
function guard<T>(operation: string, body: () => T): T {
  try {
    return body()
  } catch (error) {
    throw told(operation, error)
  }
}

function told(operation: string, error: unknown): unknown {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  // Those of SQLite, and of the file system.
  if (!/^(SQLITE_|E[A-Z]+$)/.test(code)) return error
  return new StoreUnavailable(`The SQLite store could not ${operation}: ${code}.`, { cause: error })
}
