import { afterEach, describe, expect, test } from 'bun:test'
import { contracts } from '#services/workers/contracts.ts'
import type { Broker, Claimed, NewTask } from '#shared/broker/broker.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import type { TaskView } from '#shared/broker/view.ts'
import { createAuth } from '#shared/http/auth.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { buildRecord, readEnvelope } from '#shared/task/record.ts'
import { childId, encodeEnvelope, type FinalState, type ParentRef } from '#shared/task/task.ts'
import { createApp, type ManagerDeps } from './app.ts'

const NOW = Date.UTC(2026, 0, 1)
const opened: Broker[] = []
afterEach(async () => {
  for (const broker of opened.splice(0)) await broker.close()
})

/** A UUIDv7 of `NOW` plus n milliseconds. */
const idAt = (n: number) => {
  const hex = (NOW + n).toString(16).padStart(12, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-${String(n).padStart(12, '0')}`
}

const A = idAt(1)

/** A clock that stands still; sleeps end when `wake` is called. */
function standingClock(): Clock & { sleeping: number[]; wake(ms: number): void } {
  const sleeps = new Set<{ ms: number; end: () => void }>()
  return {
    now: () => NOW + 5000,
    sleep(ms, signal) {
      return new Promise((resolve) => {
        if (signal?.aborted) return resolve()
        const sleep = {
          ms,
          end() {
            sleeps.delete(sleep)
            resolve()
          },
        }
        sleeps.add(sleep)
        signal?.addEventListener('abort', sleep.end)
      })
    },
    get sleeping() {
      return Array.from(sleeps, ({ ms }) => ms).toSorted((a, b) => a - b)
    },
    wake(ms) {
      for (const sleep of [...sleeps]) if (sleep.ms === ms) sleep.end()
    },
  }
}

async function setup(options: Partial<ManagerDeps> = {}) {
  const store = createSqliteBroker({ path: ':memory:', now: () => NOW })
  opened.push(store)
  let watching = 0
  const broker: Broker = {
    ...store,
    async watch(on) {
      const subscription = await store.watch(on)
      watching++
      return {
        close() {
          watching--
          return subscription.close()
        },
      }
    },
  }
  const clock = standingClock()
  const lines: string[] = []
  const log = createLogger('debug', (line) => lines.push(line))
  const app = createApp({ broker, contracts, log, auth: null, clock, ...options })
  const get = async (path: string) => (await app.request(path)).json() as Promise<TaskView>
  const text = (path: string) => app.request(path, { headers: { Accept: 'text/plain' } })
  const post = (path: string) => app.request(path, { method: 'POST' })
  const remove = (path: string) => app.request(path, { method: 'DELETE' })

  async function add(id: string, kind: string, payload: unknown, more: Partial<NewTask> = {}) {
    const { priority = 'normal', parent } = more
    const shown = { ...(parent ? { parent } : {}), ...(priority === 'normal' ? {} : { priority }) }
    const envelope = encodeEnvelope({ task_id: id, kind, payload, created_at: NOW, ...shown })
    await broker.enqueue([{ id, kind, priority, envelope, ...more }])
  }
  async function claim(kind: string): Promise<Claimed> {
    const { tasks } = await broker.claim({ kinds: [kind], limit: 1, leaseMs: 30_000, takeBack: false })
    if (!tasks[0]) throw new Error(`no ${kind} to claim`)
    return tasks[0]
  }
  function recordOf(task: Claimed, state: FinalState, result: unknown) {
    const envelope = readEnvelope(task.envelope)
    if (!envelope) throw new Error('no envelope')
    return JSON.stringify(
      buildRecord({
        contract: contracts[task.kind],
        envelope,
        state,
        ...(state === 'succeeded' ? { result } : { error: { type: 'permanent', message: String(result) } }),
        statusCode: state === 'succeeded' ? 200 : 400,
        attempt: task.attempt,
        calls: task.calls,
        steps: task.steps,
        startedAt: NOW + 10,
        finishedAt: NOW + 20,
      }),
    )
  }
  async function end(task: Claimed, result: unknown, state: FinalState = 'succeeded') {
    const parent = readEnvelope(task.envelope)?.parent
    const { id, kind, token } = task
    const { refused } = await broker.settle([
      {
        type: 'end',
        id,
        kind,
        token,
        parent,
        state,
        record: recordOf(task, state, result),
        endedAt: NOW + 20,
        expiresAt: null,
      },
    ])
    expect(refused).toEqual([])
  }
  /** Lets a claimed task call children and wait for them. */
  async function call(task: Claimed, kind: string, payloads: unknown[]) {
    const parent: ParentRef = { id: task.id, kind: task.kind }
    const children = payloads.map((payload, n): NewTask => {
      const id = childId(task.id, n)
      const envelope = encodeEnvelope({ task_id: id, kind, payload, created_at: NOW, parent })
      return { id, kind, priority: 'normal', parent, envelope }
    })
    const { id, token } = task
    const calls = children.length
    await broker.settle([
      {
        type: 'call',
        id,
        kind: task.kind,
        token,
        children,
        records: [],
        calls,
        steps: 0,
        order: '',
        park: true,
        wakeAt: null,
        awaits: null,
      },
    ])
  }
  return { app, broker, clock, lines, get, text, post, remove, add, claim, end, call, watching: () => watching }
}

/** Waits for what other parts do in their own turns, without waiting for time. */
async function until(condition: () => boolean) {
  for (let turn = 0; turn < 1000; turn++) {
    if (condition()) return
    await new Promise((resolve) => setImmediate(resolve))
  }
  throw new Error('it did not come to pass')
}

describe('GET /task/{id}', () => {
  test('a queued task', async () => {
    const { add, get } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    expect(await get(`/task/${A}`)).toEqual({
      task_id: A,
      kind: 'sum',
      registered: true,
      status: 'queued',
      payload: { num1: 5, num2: 7 },
      result: null,
      status_code: null,
      error: null,
      last_error: null,
      attempts: [],
      attempt: 0,
      max_attempts: 5,
      created_at: '2026-01-01T00:00:00.000Z',
      started_at: null,
      finished_at: null,
      parent_id: null,
      children: { total: 0, done: 0 },
      progress: null,
    })
  })

  test('a succeeded task', async () => {
    const { add, claim, end, get } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    await end(await claim('sum'), 12)
    expect(await get(`/task/${A}`)).toEqual({
      task_id: A,
      kind: 'sum',
      registered: true,
      status: 'succeeded',
      payload: { num1: 5, num2: 7 },
      result: 12,
      status_code: 200,
      error: null,
      last_error: null,
      attempts: [],
      attempt: 1,
      max_attempts: 5,
      created_at: '2026-01-01T00:00:00.000Z',
      started_at: '2026-01-01T00:00:00.010Z',
      finished_at: '2026-01-01T00:00:00.020Z',
      parent_id: null,
      children: { total: 0, done: 0 },
      progress: null,
    })
  })

  test('a failed task has its error and no result', async () => {
    const { add, claim, end, get } = await setup()
    await add(A, 'chat', { question: 'Why?', api_key: 'sealed:x' })
    await end(await claim('chat'), 'Invalid API key', 'failed')
    expect(await get(`/task/${A}`)).toMatchObject({
      status: 'failed',
      payload: { question: 'Why?', api_key: '[sealed]' },
      result: null,
      status_code: 400,
      error: { type: 'permanent', message: 'Invalid API key' },
    })
  })

  test('a running task, and one that waits for its children', async () => {
    const { add, claim, call, end, get } = await setup()
    await add(A, 'sequence', { n: 2 })
    const task = await claim('sequence')
    expect(await get(`/task/${A}`)).toMatchObject({ status: 'running', attempt: 1, started_at: expect.any(String) })
    await call(task, 'sum', [
      { num1: 0, num2: 1 },
      { num1: 2, num2: 0 },
    ])
    expect(await get(`/task/${A}`)).toMatchObject({ status: 'waiting', attempt: 1, children: { total: 2, done: 0 } })
    await end(await claim('sum'), 1)
    expect(await get(`/task/${A}`)).toMatchObject({ status: 'waiting', children: { total: 2, done: 1 } })
    expect(await get(`/task/${A}.0`)).toMatchObject({ status: 'succeeded', parent_id: A, result: 1 })
  })

  test('secrets show in no state, whether they are sealed or came in clear', async () => {
    const { add, claim, app, lines } = await setup()
    await add(A, 'chat', { question: 'Why?', api_key: 'sk-clear' })
    const shown = [await (await app.request(`/task/${A}`)).text()]
    await claim('chat')
    shown.push(await (await app.request(`/task/${A}`)).text())
    await app.request(`/task/${A}/cancel`, { method: 'POST' })
    shown.push(await (await app.request(`/task/${A}`)).text(), await (await app.request('/tasks')).text())
    for (const text of shown) {
      expect(text).toContain('[sealed]')
      expect(text).not.toContain('sk-clear')
    }
    expect(lines.join('\n')).not.toContain('sk-clear')
  })

  test('an unknown one is a 404 that names it, in either form', async () => {
    const { app, text } = await setup()
    for (const response of [
      await app.request('/task/nope'),
      await text('/task/nope'),
      await app.request('/task/nope?wait=9'),
    ]) {
      expect(response.status).toBe(404)
      expect(await response.json()).toMatchObject({
        type: 'urn:tasker:problem:task-not-found',
        detail: expect.stringContaining('nope'),
      })
    }
  })

  test('text/plain is the result with its own status code, and 202 before', async () => {
    const { add, claim, end, text } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    const before = await text(`/task/${A}`)
    expect([before.status, await before.text(), before.headers.get('Retry-After')]).toEqual([202, '', '1'])
    await end(await claim('sum'), 12)
    const after = await text(`/task/${A}`)
    expect([after.status, await after.text()]).toEqual([200, '12'])
    expect(after.headers.get('Content-Type')).toStartWith('text/plain')
    expect(after.headers.get('X-Request-Id')).toBeString()

    await add(idAt(2), 'chat', { question: 'Why?', api_key: 'sealed:x' })
    await end(await claim('chat'), 'Invalid API key', 'failed')
    const failed = await text(`/task/${idAt(2)}`)
    expect([failed.status, await failed.text()]).toEqual([400, 'Invalid API key'])
  })
})

describe('?wait', () => {
  test('answers when the task ends, and leaves nothing behind', async () => {
    const { add, claim, end, get, clock, watching } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    const task = await claim('sum')
    const answers = [get(`/task/${A}?wait=30`), get(`/task/${A}?wait=60`)]
    await until(() => clock.sleeping.length === 3 && watching() === 1)
    expect(clock.sleeping).toEqual([1000, 30_000, 60_000])
    await end(task, 12)
    for (const answer of answers) expect(await answer).toMatchObject({ status: 'succeeded', result: 12 })
    await until(() => watching() === 0 && clock.sleeping.length === 0)
  })

  test('answers at once when the task has ended', async () => {
    const { add, claim, end, get, clock } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    await end(await claim('sum'), 12)
    expect(await get(`/task/${A}?wait=30`)).toMatchObject({ result: 12 })
    expect(clock.sleeping).toEqual([])
  })

  test('answers with the present state when the time is over', async () => {
    const { add, get, clock, watching } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    const answer = get(`/task/${A}?wait=2`)
    await until(() => watching() === 1)
    clock.wake(2000)
    expect(await answer).toMatchObject({ status: 'queued' })
    await until(() => watching() === 0 && clock.sleeping.length === 0)
  })

  test('an event that was lost is made good by the poll', async () => {
    const deaf: Partial<Broker> = { watch: async () => ({ close: async () => {} }) }
    const { add, claim, end, clock, broker } = await setup()
    const app = createApp({ broker: { ...broker, ...deaf }, contracts, log: createLogger('silent'), auth: null, clock })
    await add(A, 'sum', { num1: 5, num2: 7 })
    const answer = app.request(`/task/${A}?wait=30`)
    await until(() => clock.sleeping.length === 2)
    await end(await claim('sum'), 12)
    clock.wake(1000)
    expect(await (await answer).json()).toMatchObject({ result: 12 })
  })

  test('a store without events still answers', async () => {
    const { add, claim, end, clock, broker } = await setup()
    const broken: Broker = { ...broker, watch: () => Promise.reject(new Error('no events')) }
    const lines: string[] = []
    const log = createLogger('info', (line) => lines.push(line))
    const app = createApp({ broker: broken, contracts, log, auth: null, clock })
    await add(A, 'sum', { num1: 5, num2: 7 })
    const answer = app.request(`/task/${A}?wait=30`)
    await until(() => clock.sleeping.length === 2 && lines.length > 0)
    await end(await claim('sum'), 12)
    clock.wake(1000)
    expect(await (await answer).json()).toMatchObject({ result: 12 })
  })

  test('ends when the client goes, and when the service stops', async () => {
    const stop = new AbortController()
    const { add, app, clock, watching } = await setup({ signal: stop.signal })
    await add(A, 'sum', { num1: 5, num2: 7 })
    const gone = new AbortController()
    const first = app.request(`/task/${A}?wait=30`, { signal: gone.signal })
    await until(() => watching() === 1)
    gone.abort()
    await first
    await until(() => watching() === 0 && clock.sleeping.length === 0)
    const second = app.request(`/task/${A}?wait=30`)
    await until(() => watching() === 1)
    stop.abort()
    expect(await (await second).json()).toMatchObject({ status: 'queued' })
  })

  test('a task that is deleted meanwhile is a 404', async () => {
    const { add, app, remove, clock, watching } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    const answer = app.request(`/task/${A}?wait=30`)
    await until(() => watching() === 1)
    await remove(`/task/${A}`)
    clock.wake(1000)
    expect((await answer).status).toBeOneOf([404, 200])
    expect((await app.request(`/task/${A}?wait=30`)).status).toBe(404)
  })

  test('other than 0 to 60 seconds is a 422', async () => {
    const { add, app } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    for (const wait of ['61', '-1', '1.5', 'long', '']) {
      const response = await app.request(`/task/${A}?wait=${wait}`)
      expect(response.status).toBe(422)
      expect(await response.json()).toMatchObject({ errors: [{ path: 'wait' }] })
    }
    expect((await app.request(`/task/${A}?wait=0`)).status).toBe(200)
  })
})

describe('cancel', () => {
  test('ends the whole tree, and what was running is refused', async () => {
    const { add, claim, call, post, get, broker } = await setup()
    await add(A, 'sequence', { n: 2 })
    await call(await claim('sequence'), 'sum', [
      { num1: 0, num2: 1 },
      { num1: 2, num2: 0 },
    ])
    const child = await claim('sum')
    const response = await post(`/task/${A}/cancel`)
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({
      status: 'cancelled',
      status_code: 499,
      error: { type: 'cancelled', message: 'The task was cancelled.' },
      children: { total: 2, done: 2 },
    })
    for (const n of [0, 1]) expect(await get(`/task/${A}.${n}`)).toMatchObject({ status: 'cancelled' })
    const { id, kind, token } = child
    const late = { type: 'end', state: 'succeeded', record: '{}', endedAt: 0, expiresAt: null } as const
    expect((await broker.settle([{ id, kind, token, ...late }])).refused).toEqual([id])
  })

  test('a final task is a 409, an unknown one a 404', async () => {
    const { add, claim, end, post } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    await end(await claim('sum'), 12)
    expect((await post(`/task/${A}/cancel`)).status).toBe(409)
    expect((await post('/task/nope/cancel')).status).toBe(404)
  })
})

describe('DELETE', () => {
  test('forgets a final task; then it is unknown', async () => {
    const { add, claim, end, remove, app } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 })
    await end(await claim('sum'), 12)
    const response = await remove(`/task/${A}`)
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual({ task_id: A, deleted: true })
    expect((await app.request(`/task/${A}`)).status).toBe(404)
    expect((await remove(`/task/${A}`)).status).toBe(404)
  })

  test('an unfinished one is cancelled first, and its tree goes with it', async () => {
    const { add, claim, call, end, remove, broker } = await setup()
    await add(A, 'sequence', { n: 3 })
    await call(await claim('sequence'), 'sum', [
      { num1: 0, num2: 1 },
      { num1: 2, num2: 3 },
    ])
    await end(await claim('sum'), 1)
    expect((await remove(`/task/${A}`)).status).toBe(200)
    expect(await broker.get([A, `${A}.0`, `${A}.1`])).toEqual([null, null, null])
    const { tasks } = await broker.claim({ kinds: ['sum', 'sequence'], limit: 9, leaseMs: 1, takeBack: true })
    expect(tasks).toEqual([])
  })

  test('a child whose parent is known is a 409: it is the history of its parent', async () => {
    const { add, claim, call, remove } = await setup()
    await add(A, 'sequence', { n: 1 })
    await call(await claim('sequence'), 'sum', [{ num1: 0, num2: 1 }])
    const response = await remove(`/task/${A}.0`)
    expect(response.status).toBe(409)
    expect(await response.text()).toContain(A)
  })
})

describe('retry', () => {
  test('queues a failed task again, from the first attempt', async () => {
    const { add, claim, end, post, get } = await setup()
    await add(A, 'sum', { num1: 5, num2: 7 }, { priority: 'high' })
    await end(await claim('sum'), 'broken', 'failed')
    const response = await post(`/task/${A}/retry`)
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({ status: 'queued', attempt: 0, payload: { num1: 5, num2: 7 } })
    const task = await claim('sum')
    expect(readEnvelope(task.envelope)).toMatchObject({ created_at: NOW, priority: 'high', kind: 'sum' })
    expect(task.attempt).toBe(1)
    await end(task, 12)
    expect(await get(`/task/${A}`)).toMatchObject({ status: 'succeeded', result: 12 })
  })

  test('forgets failed children and keeps the others', async () => {
    const { add, claim, call, end, post, broker } = await setup()
    await add(A, 'sequence', { n: 3 })
    await call(await claim('sequence'), 'sum', [
      { num1: 0, num2: 1 },
      { num1: 2, num2: 3 },
    ])
    await end(await claim('sum'), 1)
    await end(await claim('sum'), 'broken', 'failed')
    await end(await claim('sequence'), 'broken', 'failed')
    expect((await post(`/task/${A}/retry`)).status).toBe(200)
    const [kept, forgotten] = await broker.get([`${A}.0`, `${A}.1`])
    expect(kept?.record).toBeString()
    expect(forgotten).toBeNull()
  })

  test('refuses what cannot run again, with the reason', async () => {
    const { add, claim, call, end, post, broker } = await setup()
    const detail = async (id: string) => {
      const response = await post(`/task/${id}/retry`)
      return [response.status, ((await response.json()) as { detail: string }).detail]
    }
    await add(A, 'sum', { num1: 5, num2: 7 })
    expect(await detail(A)).toEqual([409, expect.stringContaining('is queued')])
    await end(await claim('sum'), 12)
    expect(await detail(A)).toEqual([409, expect.stringContaining('has succeeded')])

    await add(idAt(2), 'chat', { question: 'Why?', api_key: 'sealed:x' })
    await end(await claim('chat'), 'Invalid API key', 'failed')
    expect(await detail(idAt(2))).toEqual([409, expect.stringContaining('wiped')])

    await add(idAt(3), 'sequence', { n: 1 })
    await call(await claim('sequence'), 'sum', [{ num1: 0, num2: 1 }])
    await end(await claim('sum'), 'broken', 'failed')
    expect(await detail(`${idAt(3)}.0`)).toEqual([409, expect.stringContaining(`Retry the root ${idAt(3)}`)])

    await add(idAt(4), 'sum', { num1: 1, num2: 1 })
    const task = await claim('sum')
    const foreign = {
      type: 'end',
      state: 'failed',
      record: '{"result":"x","status_code":500}',
      endedAt: 0,
      expiresAt: null,
    } as const
    await broker.settle([{ id: task.id, kind: task.kind, token: task.token, ...foreign }])
    expect(await detail(idAt(4))).toEqual([409, expect.stringContaining('no payload')])
    expect(await detail('nope')).toEqual([404, expect.stringContaining('nope')])
  })
})

describe('GET /tasks', () => {
  const page = async (app: { request: (path: string) => Response | Promise<Response> }, path: string) =>
    (await (await app.request(path)).json()) as { tasks: TaskView[]; cursor: string | null }

  test('newest first over kinds and states, page by page, each once', async () => {
    const { add, claim, end, app } = await setup()
    for (let n = 0; n < 23; n++) await add(idAt(n), n % 3 === 0 ? 'sequence' : 'sum', { num1: n, num2: 0, n })
    for (let n = 0; n < 6; n++) await end(await claim('sum'), n, n % 2 === 0 ? 'succeeded' : 'failed')
    await claim('sequence')
    const seen: string[] = []
    let cursor: string | null = null
    let pages = 0
    do {
      const next: { tasks: TaskView[]; cursor: string | null } = await page(
        app,
        `/tasks?limit=5${cursor ? `&cursor=${cursor}` : ''}`,
      )
      seen.push(...next.tasks.map(({ task_id }) => task_id))
      cursor = next.cursor
      pages++
    } while (cursor)
    expect(seen).toEqual(Array.from({ length: 23 }, (_, n) => idAt(22 - n)))
    expect(pages).toBe(5)
  })

  test('filters by kind and state', async () => {
    const { add, claim, end, app } = await setup()
    for (let n = 0; n < 4; n++) await add(idAt(n), n < 3 ? 'sum' : 'sequence', { num1: n, num2: 0, n })
    await end(await claim('sum'), 0)
    const ids = async (path: string) => (await page(app, path)).tasks.map(({ task_id }) => task_id)
    expect(await ids('/tasks?kind=sum')).toEqual([idAt(2), idAt(1), idAt(0)])
    expect(await ids('/tasks?status=succeeded')).toEqual([idAt(0)])
    expect(await ids('/tasks?status=queued&kind=sum')).toEqual([idAt(2), idAt(1)])
    expect(await ids('/tasks?status=failed')).toEqual([])
    expect((await page(app, '/tasks')).cursor).toBeNull()
  })

  test('tasks of kinds that are no longer registered show, marked, and can be asked for, cancelled and deleted', async () => {
    const { add, app, claim, end, get, post, remove } = await setup()
    await add(idAt(1), 'sum', { num1: 1, num2: 2 })
    await add(idAt(2), 'retired', { secret: 'x' })
    await add(idAt(3), 'retired', { secret: 'x' })
    await end(await claim('retired'), 1)
    const { tasks, cursor } = await page(app, '/tasks')
    expect(cursor).toBeNull()
    expect(
      tasks.map(({ task_id, kind, registered, status, payload }) => [task_id, kind, registered, status, payload]),
    ).toEqual([
      [idAt(3), 'retired', false, 'queued', null],
      [idAt(2), 'retired', false, 'succeeded', null],
      [idAt(1), 'sum', true, 'queued', { num1: 1, num2: 2 }],
    ])
    expect((await page(app, '/tasks?kind=retired&status=queued')).tasks).toMatchObject([{ task_id: idAt(3) }])
    const first = await page(app, '/tasks?limit=1')
    expect((await page(app, `/tasks?limit=2&cursor=${first.cursor}`)).tasks.map(({ kind }) => kind)).toEqual([
      'retired',
      'sum',
    ])

    const { kinds } = (await (await app.request('/stats')).json()) as { kinds: { kind: string }[] }
    expect(kinds).toHaveLength(5)
    expect(kinds[4]).toMatchObject({
      kind: 'retired',
      registered: false,
      queued: 1,
      succeeded: 1,
      oldest_queued_ms: 5000,
    })

    expect((await post(`/task/${idAt(3)}/cancel`)).status).toBe(200)
    expect(await get(`/task/${idAt(3)}`)).toMatchObject({ registered: false, status: 'cancelled' })
    for (const id of [idAt(2), idAt(3)]) expect((await remove(`/task/${id}`)).status).toBe(200)
    expect((await (await app.request('/stats')).json()) as { kinds: unknown[] }).toMatchObject({ kinds: { length: 4 } })
  })

  test('an id that does not tell its time is placed by the time of its creation', async () => {
    const { add, app, broker } = await setup()
    await add(idAt(1), 'sequence', { n: 1 })
    const envelope = encodeEnvelope({ task_id: 'given', kind: 'sum', payload: {}, created_at: NOW + 2 })
    await broker.enqueue([{ id: 'given', kind: 'sum', priority: 'normal', envelope }])
    await add(idAt(3), 'sequence', { n: 3 })
    const { tasks } = await page(app, '/tasks')
    expect(tasks.map(({ task_id }) => task_id)).toEqual([idAt(3), 'given', idAt(1)])
  })

  test('children of a task, newest first, page by page, without its steps', async () => {
    const { add, claim, app, broker } = await setup()
    await add(A, 'sequence', { n: 5 })
    const { id, kind, token } = await claim('sequence')
    const parent = { id, kind }
    const children = [0, 1, 3, 4].map((n): NewTask => {
      const child = childId(id, n)
      const envelope = encodeEnvelope({ task_id: child, kind: 'sum', payload: {}, created_at: NOW, parent })
      return { id: child, kind: 'sum', priority: 'normal', parent, envelope }
    })
    const step = JSON.stringify({ result: '1', status_code: 200, step: 'look', status: 'succeeded' })
    const records = [{ id: childId(id, 2), record: step }]
    await broker.settle([
      {
        type: 'call',
        id,
        kind,
        token,
        children,
        records,
        calls: 5,
        steps: 1,
        order: '',
        park: true,
        wakeAt: null,
        awaits: null,
      },
    ])
    const first = await page(app, `/tasks?parent=${A}&limit=3`)
    expect(first.tasks.map(({ task_id }) => task_id)).toEqual([`${A}.4`, `${A}.3`])
    const second = await page(app, `/tasks?parent=${A}&limit=3&cursor=${first.cursor}`)
    expect(second.tasks.map(({ task_id }) => task_id)).toEqual([`${A}.1`, `${A}.0`])
    expect(second.cursor).toBeNull()
    expect((await page(app, `/tasks?parent=${A}&status=running`)).tasks).toEqual([])
    expect((await app.request(`/task/${A}.2`)).status).toBe(404)
    expect((await app.request('/tasks?parent=nope')).status).toBe(404)
  })

  test('wrong filters are a 422 that names them', async () => {
    const { app } = await setup()
    for (const [query, path] of [
      ['kind=nope', 'kind'],
      ['status=done', 'status'],
      ['limit=0', 'limit'],
      ['limit=201', 'limit'],
      ['cursor=rubbish', 'cursor'],
      ['cursor=eyJhIjotMX0', 'cursor'],
      ['state=failed', 'state'],
      ['limit=5&limit=6', 'limit'],
    ]) {
      const response = await app.request(`/tasks?${query}`)
      expect(response.status).toBe(422)
      expect(await response.json()).toMatchObject({ errors: [{ path }] })
    }
  })
})

test('a cursor is good for the filters that it was given with, and for no others', async () => {
  const { app, add, claim, call } = await setup()
  for (let n = 0; n < 3; n++) await add(idAt(n), 'sum', { num1: n, num2: 0 })
  const parent = idAt(9)
  await add(parent, 'sequence', { n: 3 })
  await call(
    await claim('sequence'),
    'sum',
    [1, 2, 3].map((num1) => ({ num1, num2: 0 })),
  )
  const cursorOf = async (query: string) =>
    ((await (await app.request(`/tasks?${query}`)).json()) as { cursor: string | null }).cursor
  const filters = [
    '',
    'kind=sum&',
    'status=queued&',
    'kind=sum&status=queued&',
    `parent=${parent}&`,
    `parent=${parent}&kind=sum&`,
  ]
  for (const given of filters) {
    const cursor = await cursorOf(`${given}limit=1`)
    expect(cursor).toBeString()
    for (const used of filters) {
      const response = await app.request(`/tasks?${used}limit=2&cursor=${cursor}`)
      expect([given, used, response.status]).toEqual([given, used, given === used ? 200 : 422])
      if (given !== used) expect(await response.json()).toMatchObject({ errors: [{ path: 'cursor' }] })
    }
  }
})

test('a query parameter that a route does not know is a 422 that names it', async () => {
  const { app, add } = await setup()
  await add(A, 'sum', { num1: 1, num2: 2 })
  for (const [method, path] of [
    ['GET', `/task/${A}?wiat=5`],
    ['GET', '/stats?kind=sum'],
    ['POST', `/task/${A}/cancel?tree=1`],
    ['POST', `/task/${A}/retry?payload=1`],
    ['DELETE', `/task/${A}?force=1`],
  ] as const) {
    const response = await app.request(path, { method })
    expect([path, response.status]).toEqual([path, 422])
    expect(await response.json()).toMatchObject({ errors: [{ path: path.split(/[?=]/)[1] }] })
  }
  expect((await app.request(`/task/${A}`)).status).toBe(200)
})

test('a page of another site neither cancels, retries nor deletes a task', async () => {
  const { app, add, get } = await setup()
  await add(A, 'sum', { num1: 1, num2: 2 })
  const headers = { 'Sec-Fetch-Site': 'same-site', Origin: 'http://localhost:3000', Host: 'localhost:5001' }
  for (const [method, path] of [
    ['POST', `/task/${A}/cancel`],
    ['POST', `/task/${A}/retry`],
    ['DELETE', `/task/${A}`],
  ] as const) {
    expect((await app.request(path, { method, headers })).status).toBe(403)
  }
  expect(await get(`/task/${A}`)).toMatchObject({ status: 'queued' })
})

test('GET /stats counts each kind and tells the age of the oldest queued', async () => {
  const { add, claim, end, app } = await setup()
  for (let n = 0; n < 3; n++) await add(idAt(n), 'sum', { num1: n, num2: 0 })
  await end(await claim('sum'), 0)
  const { kinds } = (await (await app.request('/stats')).json()) as { kinds: unknown[] }
  expect(kinds).toHaveLength(4)
  expect(kinds[0]).toEqual({
    kind: 'sum',
    registered: true,
    queued: 2,
    running: 0,
    waiting: 0,
    delayed: 0,
    succeeded: 1,
    failed: 0,
    cancelled: 0,
    broken: 0,
    oldest_queued_ms: 5000,
    last_minute: { succeeded: 1, failed: 0 },
  })
  expect(kinds[1]).toMatchObject({ kind: 'chat', queued: 0, oldest_queued_ms: null })
})

test('a store that does not answer is a 503 with Retry-After', async () => {
  const { broker, app } = await setup()
  await broker.close()
  for (const path of [`/task/${A}`, `/task/${A}?wait=5`, '/tasks', '/stats', '/readyz']) {
    const response = await app.request(path)
    expect([path, response.status, response.headers.get('Retry-After')]).toEqual([path, 503, '1'])
  }
  expect((await app.request(`/task/${A}`, { method: 'DELETE' })).status).toBe(503)
})

test('reading needs the scope read, changing the scope manage', async () => {
  const auth = await createAuth([
    { token: 'reader', scopes: ['read'] },
    { token: 'boss', scopes: ['manage'] },
  ])
  const { app, add } = await setup({ auth })
  await add(A, 'sum', { num1: 1, num2: 2 })
  const status = async (token: string | null, method: string, path: string) =>
    (await app.request(path, { method, headers: token ? { Authorization: `Bearer ${token}` } : {} })).status
  for (const [method, path] of [
    ['GET', `/task/${A}`],
    ['GET', '/tasks'],
    ['GET', '/stats'],
  ] as const) {
    expect(await status(null, method, path)).toBe(401)
    expect(await status('boss', method, path)).toBe(403)
    expect(await status('reader', method, path)).toBe(200)
  }
  for (const [method, path] of [
    ['POST', `/task/${A}/cancel`],
    ['POST', `/task/${A}/retry`],
    ['DELETE', `/task/${A}`],
  ] as const) {
    expect(await status(null, method, path)).toBe(401)
    expect(await status('reader', method, path)).toBe(403)
    expect(await status('boss', method, path)).toBe(200)
  }
  expect(await status(null, 'GET', '/healthz')).toBe(200)
})

test('posts of other sites are refused, and other methods named', async () => {
  const { app, add } = await setup()
  await add(A, 'sum', { num1: 1, num2: 2 })
  const headers = { 'Content-Type': 'text/plain' }
  expect((await app.request(`/task/${A}/cancel`, { method: 'POST', body: 'x', headers })).status).toBe(415)
  const response = await app.request(`/task/${A}`, { method: 'PUT' })
  expect([response.status, response.headers.get('Allow')]).toEqual([405, 'GET, HEAD, DELETE'])
})
