import type { Context, Hono } from 'hono'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import type { Broker, KindStats, Stored } from '#shared/broker/broker.ts'
import { limitReads } from '#shared/broker/limit-reads.ts'
import { listChildren, listTasks } from '#shared/broker/list.ts'
import { retryTask } from '#shared/broker/retry.ts'
import { cancelTree, removeTree, type TreeDeps } from '#shared/broker/tree.ts'
import { unregisteredKinds } from '#shared/broker/unregistered.ts'
import { type Contracts, isStep, viewOf } from '#shared/broker/view.ts'
import { type Auth, requireScope } from '#shared/http/auth.ts'
import { type BaseEnv, createBase } from '#shared/http/base.ts'
import { jsonOnly, wantsText } from '#shared/http/body.ts'
import type { Doors } from '#shared/http/doors.ts'
import { readQuery } from '#shared/http/query.ts'
import { type Clock, systemClock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'
import { StateConflict, TaskNotFound } from '#shared/task/errors.ts'
import { beginningOf, readEnvelope, readRecord } from '#shared/task/record.ts'
import { rootOf } from '#shared/task/task.ts'
import { readListQuery, readWaitMs } from './query.ts'
import { createWaiter } from './wait.ts'

export interface ManagerDeps {
  broker: Broker
  contracts: Contracts
  log: Log
  /** Null: every request is let in. */
  auth: Auth | null
  doors?: Doors
  clock?: Clock
  /** How often the store is asked about tasks that someone waits for, beside its events. */
  pollMs?: number
  /** Requests that may wait for a task's end at the same time. */
  maxWaiters?: number
  /** Aborts when the service stops: those who wait are answered then. */
  signal?: AbortSignal
}

/** The manager: shows tasks, waits for them, cancels, retries and deletes them. */
export function createApp(deps: ManagerDeps): Hono<BaseEnv> {
  const { contracts, log, auth, clock = systemClock } = deps
  const broker = limitReads(deps.broker)
  const tree: TreeDeps = { broker, contracts, now: clock.now }
  const waiter = createWaiter({
    broker,
    log,
    pollMs: deps.pollMs ?? 1_000,
    maxWaiters: deps.maxWaiters ?? 1_000,
    clock,
  })
  const kinds = Object.keys(contracts)
  const read = requireScope(auth, 'read')
  const manage = requireScope(auth, 'manage')

  const app = createBase({
    service: 'manager',
    about: { links: { tasks: '/tasks', task: '/task/{id}', stats: '/stats', health: '/healthz', ready: '/readyz' } },
    ...{ log, auth, doors: deps.doors },
    ready: () => broker.ping(),
    unknownPath: 'There is nothing here. See a task with GET /task/<id>, all of them with GET /tasks.',
  })

  async function find(id: string): Promise<Stored> {
    const [stored] = await broker.get([id])
    return known(id, stored)
  }

  app.get('/task/:id', read, async (c) => {
    const id = c.req.param('id')
    const timeoutMs = readWaitMs(c)
    const signal = deps.signal ? AbortSignal.any([c.req.raw.signal, deps.signal]) : c.req.raw.signal
    const stored = timeoutMs > 0 ? known(id, await waiter.wait(id, { timeoutMs, signal })) : await find(id)
    return wantsText(c) ? textForm(c, stored) : c.json(viewOf(stored, contracts))
  })

  app.delete('/task/:id', manage, async (c) => {
    const id = c.req.param('id')
    readQuery(c, [])
    const parent = parentOf(await find(id))
    if (parent && (await broker.get([parent]))[0]?.live) {
      throw new StateConflict(
        `Task ${id} is called by task ${parent}, which has not ended: its result is awaited there. Delete the root ${rootOf(id)}, or cancel this one.`,
      )
    }
    await removeTree(tree, id)
    return c.json({ task_id: id, deleted: true })
  })

  app.post('/task/:id/cancel', manage, jsonOnly, async (c) => {
    const id = c.req.param('id')
    readQuery(c, [])
    await cancelTree(tree, id)
    return c.json(viewOf(await find(id), contracts))
  })

  app.post('/task/:id/retry', manage, jsonOnly, async (c) => {
    const id = c.req.param('id')
    readQuery(c, [])
    await retryTask(tree, id)
    return c.json(viewOf(await find(id), contracts))
  })

  app.get('/tasks', read, async (c) => {
    const kind = c.req.query('kind')
    const isRegistered = kind === undefined || kinds.includes(kind)
    const known = isRegistered ? kinds : [...kinds, ...(await broker.kinds([]))]
    const { parent, ...query } = readListQuery(c, known)
    const page =
      parent === undefined
        ? await listTasks(broker, contracts, query)
        : await listChildren(broker, contracts, { ...query, parent })
    return c.json(page)
  })

  app.get('/stats', read, async (c) => {
    readQuery(c, [])
    const [registered, others] = await Promise.all([broker.stats(kinds), unregisteredKinds(broker, kinds)])
    const now = clock.now()
    return c.json({
      kinds: [
        ...registered.map((stats) => statsView(stats, { registered: true, now })),
        ...others.map((stats) => statsView(stats, { registered: false, now })),
      ],
    })
  })

  return app
}

/** A step is an entry of its parent's history, and no task. */
function known(id: string, stored: Stored | null | undefined): Stored {
  if (!stored || isStep(stored)) throw new TaskNotFound(id)
  return stored
}

function parentOf({ live, record }: Stored): string | undefined {
  const written = live ? readEnvelope(live.envelope) : readRecord(record)
  return written?.parent?.id
}

/** The seed's form: the result's text with the task's own status code once it has ended, 202 before. */
function textForm(c: Context, stored: Stored): Response {
  if (stored.live) return c.body(null, 202, { 'Retry-After': '1' })
  const record = readRecord(stored.record) ?? { result: beginningOf(stored.record), status_code: 500 }
  const { status_code: status } = record
  // These have no body, by the protocol.
  const body = [204, 205, 304].includes(status) ? '' : record.result
  return c.text(body, status as ContentfulStatusCode)
}

function statsView(stats: KindStats, { registered, now }: { registered: boolean; now: number }) {
  const { kind, queued, running, waiting, delayed, succeeded, failed, cancelled, broken } = stats
  return {
    kind,
    registered,
    queued,
    running,
    waiting,
    delayed,
    succeeded,
    failed,
    cancelled,
    broken,
    /** Since the creation of the oldest task at the front of a queue; null when none is queued. */
    oldest_queued_ms: stats.oldest.length > 0 ? Math.max(0, now - Math.min(...stats.oldest)) : null,
    last_minute: stats.lastMinute,
  }
}
