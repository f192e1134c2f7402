import { afterEach, describe, expect, test } from 'bun:test'
import { contracts } from '#services/workers/contracts.ts'
import { buildRecord, readRecord } from '#shared/task/record.ts'
import { childId, encodeEnvelope, type FinalState } from '#shared/task/task.ts'
import type { Broker, NewTask, Stored } from './broker.ts'
import { sweepOnce } from './expire.ts'
import { createSqliteBroker } from './sqlite/sqlite.ts'
import { cancelTree, removeTree } from './tree.ts'
import { viewOf } from './view.ts'

const DAY = 86_400_000
const opened: Broker[] = []
afterEach(async () => {
  for (const broker of opened.splice(0)) await broker.close()
})

function setup() {
  let time = Date.UTC(2026, 0, 1)
  const now = () => time
  const broker = createSqliteBroker({ path: ':memory:', now })
  opened.push(broker)
  const deps = { broker, contracts, now }

  const newTask = (id: string, kind: string, parent?: { id: string; kind: string }): NewTask => ({
    id,
    kind,
    priority: 'normal',
    parent,
    envelope: encodeEnvelope({ task_id: id, kind, payload: {}, created_at: now(), ...(parent ? { parent } : {}) }),
  })
  async function run(kind: string) {
    const { tasks } = await broker.claim({ kinds: [kind], limit: 1, leaseMs: 1000, takeBack: false })
    if (!tasks[0]) throw new Error(`no ${kind}`)
    return tasks[0]
  }
  /** Claims the next task of a kind and lets it call children, and wait for them. */
  async function fanOut(kind: string, childKind: string, calls: number) {
    const { id, token } = await run(kind)
    const children = Array.from({ length: calls }, (_, n) => newTask(childId(id, n), childKind, { id, kind }))
    await broker.settle([
      {
        type: 'call',
        id,
        kind,
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
    return id
  }
  async function end(kind: string, state: FinalState = 'succeeded', expiresAt: number | null = null) {
    const { id, token, calls, steps } = await run(kind)
    const retention_s = expiresAt === null ? 0 : (expiresAt - now()) / 1000
    const envelope = { task_id: id, kind, payload: {}, retention_s }
    const statusCode = state === 'succeeded' ? 200 : 500
    const run_ = { attempt: 1, calls, steps, startedAt: now(), finishedAt: now() }
    const record = JSON.stringify(buildRecord({ ...run_, envelope, state, statusCode, contract: contracts[kind] }))
    await broker.settle([{ type: 'end', id, kind, token, state, record, endedAt: now(), expiresAt }])
    return id
  }
  const states = async (...ids: string[]) =>
    (await broker.get(ids)).map((stored) => stored && viewOf(stored, contracts).status)
  return {
    ...deps,
    deps,
    newTask,
    fanOut,
    end,
    states,
    run,
    pass: (ms: number) => {
      time += ms
    },
  }
}

describe('cancelTree', () => {
  test('ends a tree of several levels and more children than one call takes', async () => {
    const { broker, deps, newTask, fanOut, states } = setup()
    await broker.enqueue([newTask('r', 'conversation')])
    await fanOut('conversation', 'sequence', 2)
    await fanOut('sequence', 'sum', 1200)
    await cancelTree(deps, 'r')
    expect(await states('r', 'r.0', 'r.1', 'r.0.0', 'r.0.599', 'r.0.1199')).toEqual(Array(6).fill('cancelled'))
    const { tasks } = await broker.claim({ kinds: ['sum', 'sequence'], limit: 9, leaseMs: 1, takeBack: true })
    expect(tasks).toEqual([])
  })

  test('ends a tree whose cancellations were sent twice, since an answer was lost', async () => {
    const { broker, deps, newTask, fanOut, states } = setup()
    const twice: Broker = {
      ...broker,
      async cancel(tasks) {
        await broker.cancel(tasks)
        return broker.cancel(tasks)
      },
    }
    await broker.enqueue([newTask('r', 'conversation')])
    await fanOut('conversation', 'sequence', 2)
    await fanOut('sequence', 'sum', 3)
    await cancelTree({ ...deps, broker: twice }, 'r')
    expect(await states('r', 'r.0', 'r.1', 'r.0.0', 'r.0.2')).toEqual(Array(5).fill('cancelled'))
    await expect(cancelTree(deps, 'r')).rejects.toThrow('has already ended')
  })

  test('a root that was cancelled expires when its retention is over', async () => {
    const { broker, deps, newTask, fanOut, pass, states } = setup()
    await broker.enqueue([newTask('r', 'sequence')])
    await fanOut('sequence', 'sum', 2)
    await cancelTree(deps, 'r')
    pass(7 * DAY - 1)
    expect(await sweepOnce(deps, 10)).toEqual({ expired: 0, adopted: 0 })
    pass(1)
    expect(await sweepOnce(deps, 10)).toEqual({ expired: 1, adopted: 0 })
    expect(await states('r', 'r.0', 'r.1')).toEqual([null, null, null])
  })

  test('a child that is cancelled alone leaves its parent to go on', async () => {
    const { broker, deps, newTask, fanOut, states } = setup()
    await broker.enqueue([newTask('r', 'sequence')])
    await fanOut('sequence', 'sum', 1)
    await cancelTree(deps, 'r.0')
    expect(await states('r', 'r.0')).toEqual(['queued', 'cancelled'])
  })
})

describe('removeTree', () => {
  test('forgets a finished tree of several levels, chunk by chunk', async () => {
    const { broker, deps, newTask, fanOut, end, states } = setup()
    await broker.enqueue([newTask('r', 'conversation')])
    await fanOut('conversation', 'sequence', 1)
    await fanOut('sequence', 'sum', 501)
    for (let n = 0; n < 501; n++) await end('sum')
    await end('sequence')
    await end('conversation')
    expect(await states('r', 'r.0', 'r.0.0', 'r.0.500')).toEqual(Array(4).fill('succeeded'))
    await removeTree(deps, 'r')
    expect(await states('r', 'r.0', 'r.0.0', 'r.0.500')).toEqual([null, null, null, null])
  })

  test('goes on where a crash left it: the root goes last', async () => {
    const { broker, deps, newTask, fanOut, states } = setup()
    await broker.enqueue([newTask('r', 'sequence')])
    await fanOut('sequence', 'sum', 1200)
    let calls = 0
    const crashing: Broker = {
      ...broker,
      remove(tasks) {
        if (++calls === 2) return Promise.reject(new Error('crash'))
        return broker.remove(tasks)
      },
    }
    await expect(removeTree({ ...deps, broker: crashing }, 'r')).rejects.toThrow('crash')
    expect(await states('r', 'r.0', 'r.699', 'r.700')).toEqual(['cancelled', 'cancelled', 'cancelled', null])
    await removeTree(deps, 'r')
    expect(await states('r', 'r.0', 'r.699', 'r.700')).toEqual([null, null, null, null])
  })

  test('goes on where a crash left it, also when the root does not tell how many children it called', async () => {
    const { broker, deps, newTask, fanOut, run, now, states } = setup()
    await broker.enqueue([newTask('r', 'sequence')])
    await fanOut('sequence', 'sum', 1200)
    await broker.cancel([
      { id: 'r', kind: 'sequence', record: '{"result":"1","status_code":200}', endedAt: now(), expiresAt: null },
    ])
    const crashing: Broker = {
      ...broker,
      remove: once(broker.remove, () => Promise.reject(new Error('crash'))),
    }
    await expect(removeTree({ ...deps, broker: crashing }, 'r')).rejects.toThrow('crash')
    await removeTree(deps, 'r')
    expect(await states('r', 'r.0', 'r.499', 'r.500', 'r.1199')).toEqual([null, null, null, null, null])
    await expect(run('sum')).rejects.toThrow('no sum')
  })

  test('finds children that were called after the record of a cancelled parent was made', async () => {
    const { broker, deps, newTask, fanOut, states } = setup()
    await broker.enqueue([newTask('r', 'sequence')])
    const late: Broker = {
      ...broker,
      async cancel(tasks) {
        await fanOut('sequence', 'sum', 3)
        return broker.cancel(tasks)
      },
    }
    await cancelTree({ ...deps, broker: { ...late, cancel: once(late.cancel, broker.cancel) } }, 'r')
    const [root] = await broker.get(['r'])
    expect(readRecord(root?.record ?? '')?.calls).toBeUndefined()
    expect(await states('r.0', 'r.1', 'r.2')).toEqual(Array(3).fill('cancelled'))
    await removeTree(deps, 'r')
    expect(await states('r', 'r.0', 'r.1', 'r.2')).toEqual([null, null, null, null])
  })
})

function once<F extends (...args: never[]) => unknown>(first: F, then: F): F {
  let called = false
  return ((...args: Parameters<F>) => {
    const run = called ? then : first
    called = true
    return run(...args)
  }) as F
}

describe('sweepOnce', () => {
  test('forgets expired roots with their trees, and leaves one that was retried meanwhile', async () => {
    const { broker, deps, newTask, fanOut, end, pass, now, states } = setup()
    await broker.enqueue([newTask('r', 'sequence'), newTask('s', 'sum')])
    await end('sum', 'failed', now() + DAY)
    await fanOut('sequence', 'sum', 1)
    await end('sum')
    await end('sequence', 'succeeded', now() + DAY)
    pass(DAY)
    const racing: Broker = {
      ...broker,
      async sweep(limit) {
        const swept = await broker.sweep(limit)
        const [token] = await broker.reserve([{ id: 's' }], 1000)
        const again = { ...newTask('s', 'sum'), history: { calls: 0, steps: 0, order: '' }, ended: null }
        await broker.retry([{ ...again, token: token ?? '' }])
        return swept
      },
    }
    expect(await sweepOnce({ ...deps, broker: racing }, 10)).toMatchObject({ expired: 2 })
    expect(await states('r', 'r.0', 's')).toEqual([null, null, 'queued'])
  })

  test('another process that sweeps at the same time does no harm', async () => {
    const { broker, deps, newTask, end, pass, now, states } = setup()
    await broker.enqueue([newTask('s', 'sum')])
    await end('sum', 'succeeded', now() + DAY)
    pass(DAY)
    await Promise.all([sweepOnce(deps, 10), sweepOnce(deps, 10)])
    expect(await states('s')).toEqual([null])
  })

  test('takes over what foreign workers wrote, even rubbish, and adds what is known of their tasks', async () => {
    const { broker, deps, now } = setup()
    const adopted: unknown[] = []
    const parent = { id: 'r', kind: 'sequence' }
    const envelope = (more: object) => JSON.stringify({ task_id: 'x', v: 1, payload: {}, ...more })
    const foreign: Broker = {
      ...broker,
      sweep: async () => ({
        expired: [],
        foreign: [
          { id: 'r.0', kind: 'sum', record: '{"result":"8.0","status_code":200}', envelope: envelope({ parent }) },
          {
            id: 'a',
            kind: 'sum',
            record: '{"result":"no","status_code":500}',
            envelope: envelope({ retention_s: 60 }),
          },
          {
            id: 'c',
            kind: 'sum',
            record: '{"result":"no","status_code":500,"retention_s":30,"created_at":7,"kind":"chat","mine":1}',
            envelope: envelope({}),
          },
          {
            id: 'd',
            kind: 'sequence',
            record: '{"result":"1","status_code":200,"retention_s":30,"calls":9}',
            envelope: envelope({ retention_s: 60 }),
            ...{ calls: 2, steps: 1 },
          },
          { id: 'b', kind: 'chat', record: 'rubbish', envelope: 'rubbish' },
        ],
      }),
      async settle(outcomes) {
        adopted.push(...outcomes)
        return { refused: [], next: null }
      },
    }
    expect(await sweepOnce({ ...deps, broker: foreign }, 10)).toEqual({ expired: 0, adopted: 5 })
    const adopt = { type: 'adopt', token: '', endedAt: now(), record: expect.any(String) }
    expect(adopted).toEqual([
      { ...adopt, id: 'r.0', kind: 'sum', state: 'succeeded', parent, expiresAt: null },
      { ...adopt, id: 'a', kind: 'sum', state: 'failed', parent: undefined, expiresAt: now() + 60_000 },
      { ...adopt, id: 'c', kind: 'sum', state: 'failed', parent: undefined, expiresAt: now() + 30_000 },
      { ...adopt, id: 'd', kind: 'sequence', state: 'succeeded', parent: undefined, expiresAt: now() + 60_000 },
      { ...adopt, id: 'b', kind: 'chat', state: 'failed', parent: undefined, expiresAt: now() + 7 * DAY },
    ])
    const finished_at = now()
    expect(adopted.map((outcome) => JSON.parse(Object(outcome).record))).toEqual([
      { result: '8.0', status_code: 200, kind: 'sum', finished_at, parent },
      { result: 'no', status_code: 500, kind: 'sum', finished_at, retention_s: 60 },
      { result: 'no', status_code: 500, kind: 'sum', finished_at, retention_s: 30, created_at: 7, mine: 1 },
      { result: '1', status_code: 200, kind: 'sequence', finished_at, retention_s: 60, calls: 2, steps: 1 },
      { result: 'rubbish', status_code: 500, kind: 'chat', finished_at },
    ])
  })
})

describe('viewOf', () => {
  const final = (record: string): Stored => ({ id: 'a1', record, live: null })

  test('shows a result of a foreign worker', () => {
    expect(viewOf(final('{"result":"8.0","status_code":200}'), contracts)).toMatchObject({
      task_id: 'a1',
      kind: null,
      status: 'succeeded',
      result: '8.0',
      status_code: 200,
      error: null,
      created_at: null,
    })
    expect(viewOf(final('{"result":"broken","status_code":500}'), contracts)).toMatchObject({
      status: 'failed',
      result: null,
      error: { type: 'failed', message: 'broken' },
    })
  })

  test('shows rubbish as a failure with the raw text', () => {
    for (const text of ['rubbish', '', '[]', '{"result":"x"}']) {
      expect(viewOf(final(text), contracts)).toMatchObject({
        status: 'failed',
        result: text,
        status_code: 500,
        error: { type: 'unreadable_record' },
      })
    }
  })

  test('a time outside of the calendar and a wrong content type do not throw', () => {
    const record = {
      result: '{',
      status_code: 200,
      content_type: 'application/json',
      created_at: 9e15,
      kind: '__proto__',
    }
    expect(viewOf(final(JSON.stringify(record)), contracts)).toMatchObject({ created_at: null, result: '{' })
  })

  test('a live task without a readable envelope is shown with what is known', () => {
    const live = {
      state: 'queued',
      kind: 'sum',
      attempts: 0,
      calls: 0,
      steps: 0,
      order: '',
      pending: 0,
      startedAt: null,
      progress: null,
    } as const
    const stored: Stored = { id: 'a1', record: null, live: { ...live, envelope: 'rubbish' } }
    expect(viewOf(stored, contracts)).toMatchObject({ status: 'queued', kind: 'sum', attempt: 0 })
  })
})
