import { afterEach, describe, expect, test } from 'bun:test'
import * as z from 'zod'
import { contracts } from '#services/workers/contracts.ts'
import type { Broker } from '#shared/broker/broker.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { cancelTree } from '#shared/broker/tree.ts'
import { createAuth } from '#shared/http/auth.ts'
import { MAX_BODY } from '#shared/http/body.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, newKey, openPayload } from '#shared/runtime/seal.ts'
import { defineTask } from '#shared/task/define.ts'
import { buildRecord, readEnvelope } from '#shared/task/record.ts'
import type { Envelope } from '#shared/task/task.ts'
import { type CreatorDeps, createApp } from './app.ts'
import { idOfKey } from './idempotency.ts'

const NOW = Date.UTC(2026, 0, 1)
const opened: Broker[] = []
afterEach(async () => {
  for (const broker of opened.splice(0)) await broker.close()
})

async function setup(options: Partial<CreatorDeps> = {}) {
  const broker = createSqliteBroker({ path: ':memory:', now: () => NOW })
  opened.push(broker)
  const keyring = await createKeyring([newKey()])
  const lines: string[] = []
  const log = createLogger('debug', (line) => lines.push(line))
  const calls: number[] = []
  const counting: Broker = {
    ...broker,
    enqueue: (tasks) => {
      calls.push(tasks.length)
      return broker.enqueue(tasks)
    },
  }
  const app = createApp({
    broker: counting,
    contracts,
    keyring,
    managerUrl: 'http://manager:5001',
    log,
    auth: null,
    now: () => NOW,
    ...options,
  })
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    app.request(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    })
  const envelopeOf = async (id: string): Promise<Envelope | null> => {
    const [stored] = await broker.get([id])
    return stored?.live ? readEnvelope(stored.live.envelope) : null
  }
  const counts = async () => {
    const stats = await broker.stats(Object.keys(contracts))
    return stats.reduce((sum, { queued, delayed, running }) => sum + queued + delayed + running, 0)
  }
  return { app, broker, keyring, lines, calls, post, envelopeOf, counts }
}

const UUID7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
const TRACE = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'

describe('the address of the manager', () => {
  const locationOf = async (options: Partial<CreatorDeps>, host: string) => {
    const { post } = await setup(options)
    const response = await post('/sum', { num1: 5, num2: 7 }, { Host: host })
    expect(response.status).toBe(201)
    return response.headers.get('Location')?.replace(/[^/]*$/, '') ?? null
  }

  test.each([
    ['tasks.example', 'http://tasks.example:5001/task/'],
    ['tasks.example:5000', 'http://tasks.example:5001/task/'],
    ['192.168.1.7:5000', 'http://192.168.1.7:5001/task/'],
    ['[fd00::7]:5000', 'http://[fd00::7]:5001/task/'],
  ])('follows from the host that was called, %s, where it is not known', async (host, expected) => {
    expect(await locationOf({ managerUrl: null, managerPort: 5001 }, host)).toBe(expected)
  })

  test('is left out rather than guessed', async () => {
    expect(await locationOf({ managerUrl: null }, 'tasks.example')).toBeNull()
  })

  test('is what was set, whatever host was called', async () => {
    expect(await locationOf({}, 'tasks.example')).toBe('http://manager:5001/task/')
  })
})

describe('POST /{kind}', () => {
  test.each([
    ['sum', { num1: 5, num2: 7 }],
    ['chat', { question: 'Tell us an interesting fact', api_key: 'sk-secret' }],
    ['sequence', { n: 5 }],
    ['conversation', { topic: 'AI', n: 4, api_key: 'sk-secret' }],
  ])('%s is created, wrapped and bare', async (kind, payload) => {
    const { post, envelopeOf } = await setup()
    for (const body of [{ payload }, payload]) {
      const response = await post(`/${kind}`, body)
      expect(response.status).toBe(201)
      const task = (await response.json()) as { task_id: string; kind: string; status: string }
      expect(task).toEqual({ task_id: expect.stringMatching(UUID7), kind, status: 'queued' })
      expect(response.headers.get('Location')).toBe(`http://manager:5001/task/${task.task_id}`)
      const shown = 'api_key' in payload ? { ...payload, api_key: expect.stringMatching(/^sealed:/) } : payload
      expect(await envelopeOf(task.task_id)).toEqual({
        task_id: task.task_id,
        v: 1,
        kind,
        payload: shown,
        created_at: NOW,
      })
    }
  })

  test.each([
    ['a list', z.array(z.number()), [1, 2]],
    ['text', z.string(), 'text'],
    ['null', z.null(), null],
    ['text or an object', z.union([z.string(), z.object({ a: z.number() })]), { a: 1 }],
    ...[
      z.object({ payload: z.string() }),
      z.object({ payload: z.string() }).transform((one) => one),
      z.object({ payload: z.string() }).optional(),
      z.union([z.object({ payload: z.string() }), z.object({ a: z.number() })]),
      z.preprocess((one) => one, z.object({ payload: z.string() })),
    ].map((input): [string, z.ZodType, unknown] => ['an object with such a field', input, { payload: 'its own' }]),
  ])('a payload that is %s is taken, wrapped and bare', async (_, input, payload) => {
    const other = defineTask({ kind: 'other', description: 'Another kind.', input, output: z.null() })
    const { post, envelopeOf } = await setup({ contracts: { other } })
    for (const body of [{ payload }, payload]) {
      const response = await post('/other', JSON.stringify(body))
      expect(response.status).toBe(201)
      const { task_id } = (await response.json()) as { task_id: string }
      expect(await envelopeOf(task_id)).toMatchObject({ payload })
    }
  })

  test('text/plain gives the bare id', async () => {
    const { post } = await setup()
    const response = await post('/sum', { num1: 1, num2: 2 }, { Accept: 'text/plain' })
    expect(response.status).toBe(201)
    expect(response.headers.get('Content-Type')).toStartWith('text/plain')
    expect(response.headers.get('Location')).toContain('/task/')
    expect(await response.text()).toMatch(UUID7)
  })

  test('options are kept, those at their default are not', async () => {
    const { post, envelopeOf, broker } = await setup()
    const options = { priority: 'high', timeout_ms: 5000, max_attempts: 2, retention_s: 0, delay_ms: 60_000 }
    const response = await post('/sum', { payload: { num1: 1, num2: 2 }, options }, { traceparent: TRACE })
    const { task_id, status } = (await response.json()) as { task_id: string; status: string }
    expect(status).toBe('delayed')
    expect(await envelopeOf(task_id)).toEqual({
      task_id,
      v: 1,
      kind: 'sum',
      payload: { num1: 1, num2: 2 },
      created_at: NOW,
      priority: 'high',
      timeout_ms: 5000,
      max_attempts: 2,
      retention_s: 0,
      traceparent: TRACE,
    })
    expect((await broker.get([task_id]))[0]?.live?.state).toBe('delayed')
  })

  test('run_at is a time with a zone or milliseconds; one that is past queues at once', async () => {
    const { post } = await setup()
    const statusOf = async (run_at: unknown) => {
      const response = await post('/sum', { payload: { num1: 1, num2: 2 }, options: { run_at } })
      return ((await response.json()) as { status: unknown }).status
    }
    expect(await statusOf('2026-01-01T01:00:00+00:30')).toBe('delayed')
    expect(await statusOf(NOW + 1)).toBe('delayed')
    expect(await statusOf('2025-12-31T23:59:59Z')).toBe('queued')
    expect(await statusOf('tomorrow')).toBe(422)
    expect(await statusOf('2026-01-01T01:00:00')).toBe(422)
  })

  test('a traceparent that is not well-formed is dropped', async () => {
    const { post, envelopeOf } = await setup()
    for (const traceparent of ['00-zz-00-01', `00-${'0'.repeat(32)}-00f067aa0ba902b7-01`, `${TRACE}-more`]) {
      const response = await post('/sum', { num1: 1, num2: 2 }, { traceparent })
      const { task_id } = (await response.json()) as { task_id: string }
      expect(await envelopeOf(task_id)).not.toHaveProperty('traceparent')
    }
  })

  test('requests that come together go to the store together', async () => {
    const { post, calls } = await setup()
    const responses = await Promise.all(Array.from({ length: 50 }, (_, n) => post('/sum', { num1: n, num2: 1 })))
    expect(responses.every(({ status }) => status === 201)).toBe(true)
    expect(calls.reduce((a, b) => a + b)).toBe(50)
    expect(calls.length).toBeLessThan(25)
  })
})

describe('refusals, after which nothing is queued', () => {
  test('a payload that does not fit is a 422 with every field', async () => {
    const { post, counts } = await setup()
    const response = await post('/sum', { payload: { num1: 'a' }, options: { priority: 'urgent', colour: 1 } })
    expect(response.status).toBe(422)
    expect(response.headers.get('Content-Type')).toBe('application/problem+json')
    const problem = (await response.json()) as { errors: { path: string; message: string }[] }
    const paths = problem.errors.map(({ path }) => path)
    expect(paths).toEqual(['payload.num1', 'payload.num2', 'options.priority', 'options'])
    expect(await counts()).toBe(0)
  })

  test.each([
    { delay_ms: 1, run_at: NOW },
    { delay_ms: -1 },
    { delay_ms: 1.5 },
    { max_attempts: 0 },
    { timeout_ms: 0 },
    { retention_s: -1 },
    { colour: 'red' },
    'high',
    null,
  ])('options %j are a 422', async (options) => {
    const { post, counts } = await setup()
    const response = await post('/sum', { payload: { num1: 1, num2: 2 }, options })
    expect(response.status).toBe(422)
    expect(await counts()).toBe(0)
  })

  test.each([
    'null',
    '[]',
    '1',
    '"text"',
    '{}',
    '{"num1":1e999,"num2":1}',
    '{"payload":{"num1":1,"num2":2},"extra":1}',
  ])('the body %s is a 422', async (body) => {
    const { post, counts } = await setup()
    expect((await post('/sum', body)).status).toBe(422)
    expect(await counts()).toBe(0)
  })

  const errorsOf = async (response: Response) => {
    expect(response.status).toBe(422)
    return ((await response.json()) as { errors: { path: string; message: string }[] }).errors
  }

  test('an unknown field beside the payload is a 422 that names it and shows where options go', async () => {
    const { post, counts } = await setup()
    const errors = await errorsOf(await post('/sum', { payload: { num1: 1, num2: 2 }, priority: 'high', prio: 1 }))
    expect(errors.map(({ path }) => path)).toEqual(['priority', 'prio'])
    for (const { message } of errors) expect(message).toContain('{"payload": {…}, "options": {…}}')
    expect(await counts()).toBe(0)
  })

  test('options, or a payload, beside the fields of a payload are a 422 that shows the wrapped form', async () => {
    const { post, counts } = await setup()
    for (const [path, body] of [
      ['options', { num1: 1, num2: 2, options: { priority: 'high' } }],
      ['payload', { num1: 1, num2: 2, payload: { num1: 3, num2: 4 } }],
      ['payload', { num1: 1, num2: 2, payload: {}, options: {} }],
    ] as const) {
      const [error] = await errorsOf(await post('/sum', body))
      expect(error).toEqual({ path, message: expect.stringContaining('{"payload": {…}, "options": {…}}') })
    }
    expect(await counts()).toBe(0)
  })

  test('fields that the schema of a kind has are its own, whatever they are called', async () => {
    const odd = defineTask({
      ...{ kind: 'odd', description: 'Has fields named like those of the body.', output: z.null() },
      input: z.object({ options: z.string(), payload: z.number().optional() }),
    })
    const { post, envelopeOf } = await setup({ contracts: { odd } })
    for (const body of [{ options: 'a', payload: 1 }, { options: 'a' }, { payload: { options: 'a' }, options: {} }]) {
      const response = await post('/odd', body)
      expect(response.status).toBe(201)
      const { task_id } = (await response.json()) as { task_id: string }
      expect(await envelopeOf(task_id)).toMatchObject({ payload: { options: 'a' } })
    }
  })

  test('an unknown query parameter is a 422 that names it', async () => {
    const { post, counts } = await setup()
    for (const path of ['/sum?delay_ms=5', '/sum/batch?delay_ms=5']) {
      const body = path === '/sum?delay_ms=5' ? { num1: 1, num2: 2 } : { payloads: [{ num1: 1, num2: 2 }] }
      expect(await errorsOf(await post(path, body))).toMatchObject([{ path: 'delay_ms' }])
    }
    expect(await counts()).toBe(0)
  })

  test('an unknown kind is a 404 that names the kinds, whatever its name', async () => {
    const { post } = await setup()
    for (const path of ['/nope', '/__proto__', '/constructor', '/toString', '/nope/batch', '/']) {
      const response = await post(path, { num1: 1, num2: 2 })
      expect(response.status).toBe(path === '/' ? 405 : 404)
      if (path !== '/') expect(await response.text()).toContain('sum, chat, sequence, conversation')
    }
  })

  test('malformed JSON, another type, too much and another method', async () => {
    const { app, post, counts } = await setup()
    expect((await post('/sum', '{"num1":')).status).toBe(400)
    expect((await post('/sum', '{}', { 'Content-Type': 'text/plain' })).status).toBe(415)
    expect((await post('/sum', `"${'x'.repeat(MAX_BODY)}"`)).status).toBe(413)
    const wrong = await app.request('/sum')
    expect(wrong.status).toBe(405)
    expect(wrong.headers.get('Allow')).toBe('POST')
    expect(await counts()).toBe(0)
  })

  test('a store that does not answer is a 503 with Retry-After', async () => {
    const { broker, post, app } = await setup()
    await broker.close()
    for (const [path, body, headers] of [
      ['/sum', { num1: 1, num2: 2 }, {}],
      ['/sum', { num1: 1, num2: 2 }, { 'Idempotency-Key': 'k' }],
      ['/sum/batch', { payloads: [{ num1: 1, num2: 2 }] }, {}],
    ] as const) {
      const response = await post(path, body, headers)
      expect(response.status).toBe(503)
      expect(response.headers.get('Retry-After')).toBe('1')
      expect(await response.json()).toMatchObject({ type: 'urn:tasker:problem:store-unavailable' })
    }
    expect((await app.request('/readyz')).status).toBe(503)
  })

  test('what waits for a slow store is bounded: beyond it is a 503 with Retry-After, until the store has caught up', async () => {
    const { broker, counts } = await setup()
    const slow = Promise.withResolvers<void>()
    const waiting: Broker = {
      ...broker,
      async enqueue(tasks) {
        await slow.promise
        return broker.enqueue(tasks)
      },
    }
    const { post } = await setup({ broker: waiting })
    // Their envelopes are five times as long as they are.
    const payloads = Array.from({ length: 1_000 }, () => ({ num1: 1, num2: 2 }))
    const answers: number[] = []
    const posts = Array.from({ length: 150 }, async () => {
      const response = await post('/sum/batch', { payloads })
      answers.push(response.status)
      if (response.status === 503) expect(response.headers.get('Retry-After')).toBe('1')
    })
    while (answers.length < 10) await nextTurn()
    expect(answers.every((status) => status === 503)).toBe(true)
    slow.resolve()
    await Promise.all(posts)
    const accepted = answers.filter((status) => status === 201).length
    expect(accepted).toBeWithin(110, 140)
    expect(await counts()).toBe(1_000 * accepted)
    expect((await post('/sum', { num1: 1, num2: 2 })).status).toBe(201)
  })

  test('tokens: 401 without, 403 without the scope, 201 with it', async () => {
    const auth = await createAuth([
      { token: 'maker', scopes: ['create'] },
      { token: 'reader', scopes: ['read'] },
    ])
    const { post, counts } = await setup({ auth })
    const status = async (headers: Record<string, string>) => (await post('/sum', { num1: 1, num2: 2 }, headers)).status
    expect(await status({})).toBe(401)
    expect(await status({ Authorization: 'Bearer reader' })).toBe(403)
    expect(await counts()).toBe(0)
    expect(await status({ Authorization: 'Bearer maker' })).toBe(201)
  })
})

describe('secrets', () => {
  test('are in neither store, answer nor log, and the worker can open them', async () => {
    const { post, lines, envelopeOf, keyring } = await setup()
    const body = { payload: { question: 'Why?', api_key: 'sk-secret' } }
    const response = await post('/chat', body, { 'Idempotency-Key': 'k' })
    const text = await response.text()
    const { task_id } = JSON.parse(text)
    const again = await (await post('/chat', body, { 'Idempotency-Key': 'k' })).text()
    const refused = await (await post('/chat', { payload: { api_key: 'sk-secret', question: 1 } })).text()
    const conflict = await (
      await post('/chat', { question: 'Else?', api_key: 'sk-secret' }, { 'Idempotency-Key': 'k' })
    ).text()
    const envelope = await envelopeOf(task_id)
    for (const shown of [text, again, refused, conflict, lines.join('\n'), JSON.stringify(envelope)]) {
      expect(shown).not.toContain('sk-secret')
    }
    const chat = contracts['chat']
    if (!chat) throw new Error('no chat')
    expect(await openPayload(keyring, chat, task_id, envelope?.payload)).toEqual(body.payload)
  })

  test('a secret that could not be hidden is a 422 that says so, and nothing is stored', async () => {
    const { post, counts } = await setup()
    const payloads = [
      { question: 'Is a token a key?', api_key: 'k' },
      { question: 'What is sk-secret?', api_key: 'sk-secret' },
    ]
    for (const payload of payloads) {
      for (const [path, body] of [
        ['/chat', { payload }],
        ['/chat/batch', { payloads: [{ question: 'Why?', api_key: 'sk-secret' }, payload] }],
      ] as const) {
        const response = await post(path, body)
        expect(response.status).toBe(422)
        const text = await response.text()
        expect(text).toMatch(/at least 6 characters|quotes a secret/)
        expect(text).toMatch(/"path":"payload(s\.1)?\.(api_key|question)"/)
        expect(text).not.toContain('sk-secret')
      }
    }
    expect(await counts()).toBe(0)
  })

  test('without a key, kinds with secrets are a 503 that says what to set, and the others work', async () => {
    const { post, counts } = await setup({ keyring: null })
    for (const [path, body] of [
      ['/chat', { question: 'Why?', api_key: 'sk-secret' }],
      ['/chat/batch', { payloads: [{ question: 'Why?', api_key: 'sk-secret' }] }],
    ] as const) {
      const response = await post(path, body)
      expect(response.status).toBe(503)
      expect(await response.json()).toMatchObject({
        type: 'urn:tasker:problem:no-secret-key',
        detail: expect.stringMatching(/chat \(api_key\).*TASKER_SECRET/),
      })
    }
    expect(await counts()).toBe(0)
    expect((await post('/sum', { num1: 1, num2: 2 })).status).toBe(201)
  })
})

describe('Idempotency-Key', () => {
  const key = { 'Idempotency-Key': 'order-1' }
  const idOf = async (response: Response) => ((await response.json()) as { task_id: string }).task_id

  test('the same key again gives the first task, and says so', async () => {
    const { post, counts } = await setup()
    const first = await post('/sum', { num1: 1, num2: 2 }, key)
    expect(first.status).toBe(201)
    expect(first.headers.get('Idempotent-Replayed')).toBeNull()
    const second = await post('/sum', { payload: { num2: 2, num1: 1 } }, key)
    expect(second.status).toBe(201)
    expect(second.headers.get('Idempotent-Replayed')).toBe('true')
    const id = await idOf(first)
    expect(await idOf(second)).toBe(id)
    expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    expect(await counts()).toBe(1)
  })

  test('a payload whose defaults are drawn anew each time is the same payload', async () => {
    const drawn = defineTask({
      ...{ kind: 'drawn', description: 'Has a default that differs each time.', output: z.null() },
      input: z.object({ a: z.number(), id: z.string().default(() => crypto.randomUUID()) }),
    })
    const { post } = await setup({ contracts: { drawn } })
    const create = async (a: number) => post('/drawn', { payload: { a } }, { 'Idempotency-Key': 'once' })
    const [first, again, other] = [await create(1), await create(1), await create(2)]
    expect([first.status, again.status, other.status]).toEqual([201, 201, 409])
    expect(again.headers.get('Idempotent-Replayed')).toBe('true')
  })

  test('at once from many sides it is one task', async () => {
    const { post, counts } = await setup()
    const responses = await Promise.all(Array.from({ length: 20 }, () => post('/sum', { num1: 1, num2: 2 }, key)))
    expect(new Set(await Promise.all(responses.map(idOf))).size).toBe(1)
    expect(responses.filter((response) => response.headers.get('Idempotent-Replayed') === null)).toHaveLength(1)
    expect(await counts()).toBe(1)
  })

  test('another payload is a 409, also when the first task has ended', async () => {
    const { post, broker } = await setup()
    const id = await idOf(await post('/sum', { num1: 1, num2: 2 }, key))
    expect((await post('/sum', { num1: 1, num2: 3 }, key)).status).toBe(409)
    const { tasks } = await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 1000, takeBack: false })
    const [task] = tasks
    if (!task) throw new Error('nothing claimed')
    const record = buildRecord({
      contract: contracts['sum'],
      envelope: { task_id: id, payload: { num1: 1, num2: 2 } },
      state: 'succeeded',
      result: 3,
      statusCode: 200,
      attempt: 1,
      calls: 0,
      steps: 0,
      startedAt: NOW,
      finishedAt: NOW,
    })
    const end = {
      type: 'end',
      state: 'succeeded',
      record: JSON.stringify(record),
      endedAt: 0,
      expiresAt: null,
    } as const
    await broker.settle([{ id, kind: 'sum', token: task.token, ...end }])
    const conflict = await post('/sum', { num1: 1, num2: 3 }, key)
    expect(conflict.status).toBe(409)
    expect(await conflict.json()).toMatchObject({ detail: expect.stringContaining(id) })
    const replayed = await post('/sum', { num1: 1, num2: 2 }, key)
    expect(await replayed.json()).toEqual({ task_id: id, kind: 'sum', status: 'succeeded' })
  })

  test('other options are a 409, also when the first task has ended; the same, or their defaults, are the same task', async () => {
    const { post, broker } = await setup()
    const payload = { num1: 1, num2: 2 }
    const create = async (name: string, options: object) =>
      (await post('/sum', { payload, options }, { 'Idempotency-Key': name })).status
    const each = [{ delay_ms: 5 }, { run_at: NOW + 5 }, { priority: 'low' }, { timeout_ms: 9 }, { max_attempts: 1 }]
    for (const options of [...each, { retention_s: 0 }, { max_attempts: 1, timeout_ms: 9 }]) {
      const name = JSON.stringify(options)
      expect([options, await create(name, options)]).toEqual([options, 201])
      expect([options, await create(name, Object.fromEntries(Object.entries(options).toReversed()))]).toEqual([
        options,
        201,
      ])
      expect([options, await create(name, {})]).toEqual([options, 409])
      expect([options, await create(name, { ...options, priority: 'high' })]).toEqual([options, 409])
      expect([
        options,
        (await post('/sum', { payload: { num1: 1, num2: 3 }, options }, { 'Idempotency-Key': name })).status,
      ]).toEqual([options, 409])
    }
    expect(await create('plain', {})).toBe(201)
    expect(await create('plain', { priority: 'normal', delay_ms: 0 })).toBe(201)
    expect(await create('plain', { max_attempts: 1 })).toBe(409)
    await cancelTree({ broker, contracts, now: () => NOW }, await idOfKey('sum', '{"max_attempts":1}'))
    expect(await create('{"max_attempts":1}', { max_attempts: 1 })).toBe(201)
    expect(await create('{"max_attempts":1}', { max_attempts: 2 })).toBe(409)
  })

  test('one key serves each kind by itself', async () => {
    const { post } = await setup()
    const [sum, sequence] = [await post('/sum', { num1: 1, num2: 2 }, key), await post('/sequence', { n: 1 }, key)]
    expect(await idOf(sum)).not.toBe(await idOf(sequence))
  })

  test('one that is no key is a 400', async () => {
    const { post, counts } = await setup()
    for (const wrong of ['', 'a b', 'x'.repeat(256), 'é']) {
      expect((await post('/sum', { num1: 1, num2: 2 }, { 'Idempotency-Key': wrong })).status).toBe(400)
    }
    expect((await post('/sum', { num1: 1, num2: 2 }, { 'Idempotency-Key': 'x'.repeat(255) })).status).toBe(201)
    expect(await counts()).toBe(1)
  })
})

describe('POST /{kind}/batch', () => {
  test('creates all, in order, in one call of the store', async () => {
    const { post, calls, envelopeOf } = await setup()
    const payloads = Array.from({ length: 1000 }, (_, n) => ({ num1: n, num2: 1 }))
    const response = await post('/sum/batch', { payloads })
    expect(response.status).toBe(201)
    const { task_ids: ids } = (await response.json()) as { task_ids: string[] }
    expect(new Set(ids).size).toBe(1000)
    expect(calls).toEqual([1000])
    expect((await envelopeOf(ids[7] ?? ''))?.payload).toEqual({ num1: 7, num2: 1 })
  })

  test('one payload that does not fit refuses all, and is named', async () => {
    const { post, counts } = await setup()
    const payloads = [{ num1: 1, num2: 2 }, { num1: 'x', num2: 2 }, 7]
    const response = await post('/sum/batch', { payloads })
    expect(response.status).toBe(422)
    const { errors } = (await response.json()) as { errors: { path: string }[] }
    expect(errors.map(({ path }) => path)).toEqual(['payloads.1.num1', 'payloads.2'])
    expect(await counts()).toBe(0)
  })

  test('too many, none, and a body of another shape are a 422', async () => {
    const { post, counts } = await setup()
    const payload = { num1: 1, num2: 2 }
    for (const body of [
      { payloads: Array.from({ length: 1001 }, () => payload) },
      { payloads: [] },
      { payloads: payload },
      { payloads: [payload], colour: 1 },
      [payload],
      null,
    ]) {
      expect((await post('/sum/batch', body)).status).toBe(422)
    }
    expect(await counts()).toBe(0)
  })

  test('takes no idempotency key, and gives bare ids as text', async () => {
    const { post } = await setup()
    const body = {
      payloads: [
        { num1: 1, num2: 2 },
        { num1: 3, num2: 4 },
      ],
    }
    expect((await post('/sum/batch', body, { 'Idempotency-Key': 'k' })).status).toBe(400)
    const text = await (await post('/sum/batch', body, { Accept: 'text/plain' })).text()
    expect(text.split('\n').map((id) => UUID7.test(id))).toEqual([true, true])
  })
})
