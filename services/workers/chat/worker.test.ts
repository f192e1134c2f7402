import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, spyOn, test } from 'bun:test'
import { type ErrorResponse, LLMock } from '@copilotkit/aimock'
import { createApp as createCreator } from '#services/creator/app.ts'
import { createApp as createManager } from '#services/manager/app.ts'
import { contracts } from '#services/workers/contracts.ts'
import conversation from '#services/workers/conversation/worker.ts'
import { cancelTree } from '#shared/broker/tree.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, type Keyring, newKey } from '#shared/runtime/seal.ts'
import { type Durable, type DurableStore, durableStores } from '#shared/test/durable-stores.ts'
import { findForms, formsOf } from '#shared/test/forms.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createChat } from './worker.ts'

const KEY = 'sk-live-4f8Zq0-do-not-tell'
describe.each(durableStores)('chat and conversation on $name', ({ start }) => {
  const model = new LLMock({ port: 0 })
  let durable: Durable
  let clock: ManualClock
  let store: DurableStore
  let lines: string[]
  let keyring: Keyring
  let bodies: string[]
  let post: (path: string, body: unknown) => Promise<string>
  let get: (id: string) => Promise<Record<string, unknown>>
  let drain: () => Promise<number>

  beforeAll(async () => {
    await model.start()
    durable = await start()
  })
  afterAll(async () => {
    await model.stop()
    await durable.stop()
  })

  beforeEach(async () => {
    model.reset()
    clock = manualClock()
    lines = []
    bodies = []
    store = await durable.open({ now: clock.now })
    keyring = await createKeyring([newKey()])
    const log = createLogger('debug', (line) => lines.push(line))
    const auth = await createAuth([])
    const deps = { broker: store.broker, contracts, log, auth, now: clock.now }
    const creator = createCreator({ ...deps, keyring, managerUrl: 'http://manager' })
    const manager = createManager(deps)
    const worker = createWorker({
      ...{ broker: store.broker, clock, keyring, log, random: () => 0 },
      implementations: [createChat({ baseUrl: `${model.url}/v1`, model: 'test-model', now: clock.now }), conversation],
    })
    drain = async () => (await worker.drain()).ran
    async function read(response: Response) {
      const body = await response.text()
      bodies.push(body, JSON.stringify(Object.fromEntries(response.headers)))
      return JSON.parse(body) as Record<string, unknown>
    }
    post = async (path, body) => {
      const headers = { 'Content-Type': 'application/json' }
      const { task_id } = await read(
        await creator.request(path, { method: 'POST', headers, body: JSON.stringify(body) }),
      )
      return String(task_id)
    }
    get = async (id) => read(await manager.request(`/task/${id}`))
  })
  afterEach(async () => {
    // Whatever a test did: the key is nowhere.
    const places = { ...(await store.files()), log: lines.join('\n'), answers: bodies.join('\n') }
    await store.broker.close()
    expect(findForms(places, formsOf(KEY))).toEqual({})
  })

  const ask = () => post('/chat', { payload: { question: 'Why is the sky blue?', api_key: KEY } })
  const answerOnce = (error: ErrorResponse) => model.on({ userMessage: 'sky', sequenceIndex: 0 }, error)

  test('a question is answered by the model that is set, with the key of the task', async () => {
    model.onMessage('sky', { content: 'Because of scattering.' })
    const id = await ask()
    await drain()
    expect(await get(id)).toMatchObject({
      ...{ status: 'succeeded', result: 'Because of scattering.', status_code: 200 },
      payload: { question: 'Why is the sky blue?', api_key: '[sealed]' },
    })
    const request = model.getLastRequest()
    expect(request?.body).toMatchObject({
      model: 'test-model',
      messages: [{ role: 'user', content: 'Why is the sky blue?' }],
    })
    expect(model.getRequests()).toHaveLength(1)
  })

  test('a wrong key fails the task at once with 400 Invalid API key', async () => {
    answerOnce({ error: { message: `Incorrect API key provided: ${KEY}`, code: 'invalid_api_key' }, status: 401 })
    const id = await ask()
    await drain()
    expect(await get(id)).toMatchObject({
      ...{ status: 'failed', status_code: 400, result: null, attempt: 1 },
      error: { type: 'invalid_api_key', message: 'Invalid API key' },
    })
  })

  test('a rate limit is waited out as long as the provider says, and no longer', async () => {
    answerOnce({ error: { message: 'Slow down', code: 'rate_limit_exceeded' }, status: 429, retryAfter: 90 })
    model.onMessage('sky', { content: 'Scattering.' })
    const id = await ask()
    await drain()
    expect(await get(id)).toMatchObject({ status: 'delayed', attempt: 1 })
    clock.advance(89_999)
    expect(await drain()).toBe(0)
    clock.advance(1)
    await drain()
    expect(await get(id)).toMatchObject({ status: 'succeeded', result: 'Scattering.', attempt: 2 })
  })

  test("a used-up quota fails the task at once, with the provider's words and without the key", async () => {
    answerOnce({ error: { message: `No quota for ${KEY}`, code: 'insufficient_quota' }, status: 429 })
    const id = await ask()
    await drain()
    const task = await get(id)
    expect(task).toMatchObject({
      status: 'failed',
      status_code: 429,
      attempt: 1,
      error: { type: 'insufficient_quota' },
    })
    expect(JSON.stringify(task['error'])).toContain('No quota for [sealed]')
  })

  test('the client of the provider prints nothing, whatever its own setting says', async () => {
    const printed = (['debug', 'info', 'log', 'warn', 'error'] as const).map((method) =>
      spyOn(console, method).mockImplementation(() => undefined),
    )
    process.env['OPENAI_LOG'] = 'debug'
    try {
      answerOnce({ error: { message: `What is ${KEY}?`, code: 'bad' }, status: 400 })
      await ask()
      await drain()
      expect(printed.flatMap(({ mock }) => mock.calls)).toEqual([])
    } finally {
      delete process.env['OPENAI_LOG']
      for (const spy of printed) spy.mockRestore()
    }
  })

  test('an error of the provider is retried, and its last words are kept', async () => {
    model.onMessage('sky', { error: { message: `Overloaded while serving ${KEY}` }, status: 503 })
    const id = await ask()
    for (let attempt = 1; attempt <= 5; attempt++) {
      await drain()
      clock.advance(300_000)
    }
    expect(await get(id)).toMatchObject({ status: 'failed', status_code: 502, attempt: 5 })
    expect(model.getRequests()).toHaveLength(5)
  })

  test('a provider that cannot be reached is retried', async () => {
    const unreachable = createWorker({
      ...{ broker: store.broker, clock, log: createLogger('debug', (line) => lines.push(line)), random: () => 0 },
      keyring: await createKeyring([newKey()]),
      implementations: [createChat({ baseUrl: 'http://127.0.0.1:1/v1', model: 'test-model' })],
    })
    await store.broker.enqueue([
      {
        ...{ id: 'in-clear', kind: 'chat', priority: 'normal' },
        envelope: JSON.stringify({
          task_id: 'in-clear',
          v: 1,
          kind: 'chat',
          payload: { question: 'Why?', api_key: 'x' },
        }),
      },
    ])
    await unreachable.drain()
    expect(await get('in-clear')).toMatchObject({ status: 'delayed', attempt: 1 })
  })

  test('a conversation of five turns is the opening question and five answers, by five chat tasks, one after the other', async () => {
    let turn = 0
    model.onMessage(/AI/, () => ({ content: `Answer ${++turn}.\nAnd a question?` }))
    const id = await post('/conversation', { topic: 'AI', n: 5, api_key: KEY })
    await drain()
    const task = await get(id)
    const answers = [1, 2, 3, 4, 5].map((i) => `Answer ${i}. And a question?`)
    expect(task).toMatchObject({ status: 'succeeded', children: { total: 5, done: 5 } })
    expect(task['result']).toBe(['What is interesting about AI?', ...answers].join('\n'))
    const questions = model.getRequests().map(({ body }) => JSON.stringify(body))
    expect(questions).toHaveLength(5)
    expect(questions[1]).toContain('Answer 1.')
    expect(questions.map((question) => question.includes('follow-up'))).toEqual([true, true, true, false, false])
    expect(await get(`${id}.4`)).toMatchObject({ kind: 'chat', parent_id: id, payload: { api_key: '[sealed]' } })
  })

  test('a conversation with a wrong key fails as its chat does', async () => {
    model.onMessage(/AI/, { error: { message: 'Incorrect API key provided', code: 'invalid_api_key' }, status: 401 })
    const id = await post('/conversation', { topic: 'AI', n: 3, api_key: KEY })
    await drain()
    expect(await get(id)).toMatchObject({ status: 'failed', status_code: 400, error: { message: 'Invalid API key' } })
    expect(model.getRequests()).toHaveLength(1)
  })

  test('a task that is cancelled while it waits to be retried leaves nothing of the key', async () => {
    answerOnce({ error: { message: 'Slow down' }, status: 429, retryAfter: 90 })
    const id = await ask()
    await drain()
    await cancelTree({ broker: store.broker, contracts, now: clock.now }, id)
    expect(await get(id)).toMatchObject({ status: 'cancelled', payload: { api_key: '[sealed]' } })
  })

  /** A provider of its own, and a worker that asks it. */
  async function oddProvider(answer: (request: Request) => Response | Promise<Response>) {
    const provider = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: answer })
    const worker = createWorker({
      ...{ broker: store.broker, clock, log: createLogger('debug', (line) => lines.push(line)), random: () => 0 },
      keyring,
      implementations: [createChat({ baseUrl: `${provider.url.href}v1`, model: 'test-model', now: clock.now })],
    })
    /** Asks until the task has ended. */
    const asked = async () => {
      const id = await ask()
      for (let attempt = 1; attempt <= 5; attempt++) {
        await worker.drain()
        clock.advance(300_000)
      }
      return get(id)
    }
    return { asked, worker, [Symbol.asyncDispose]: () => provider.stop(true) }
  }
  const html = (body: string) => new Response(body, { headers: { 'Content-Type': 'text/html' } })

  test.each([
    [
      'no choices',
      () => Response.json({ id: 'x', note: `for ${KEY}` }),
      1,
      'without a choice: {"id":"x","note":"for [sealed]"}',
    ],
    ['an empty list of choices', () => Response.json({ choices: [] }), 1, 'without a choice: {"choices":[]}'],
    ['a choice without a message', () => Response.json({ choices: [null] }), 1, 'without a choice: {"choices":[null]}'],
    ['choices that are no list', () => Response.json({ choices: { 0: 1 } }), 1, 'without a choice'],
    [
      'an error in place of an answer',
      () => Response.json({ error: { message: `No credit, ${KEY}.` } }),
      1,
      'without a choice: No credit, [sealed].',
    ],
    ['a text', () => Response.json('Hello'), 1, 'without a choice: "Hello"'],
    ['null', () => Response.json(null), 1, 'without a choice: null'],
    [
      'a page',
      () => html(`<html>\n<h1>Log in,   ${KEY}</h1>`),
      1,
      'something else than JSON: <html> <h1>Log in, [sealed]</h1>',
    ],
    [
      'a page that says it is JSON',
      () => new Response('<html>', { headers: { 'Content-Type': 'application/json' } }),
      1,
      'something else than JSON: <html>',
    ],
    ['nothing', () => new Response('', { headers: { 'Content-Type': 'application/json' } }), 5, 'an empty answer'],
    ['no content', () => new Response(null, { status: 204 }), 5, 'an empty answer'],
    [
      'JSON that is cut',
      () =>
        new Response(`{"choices":[{"message":{"content":"${KEY}`, { headers: { 'Content-Type': 'application/json' } }),
      5,
      'breaks off, or is no JSON: {"choices":[{"message":{"content":"[sealed]',
    ],
    [
      'a page with 503',
      () => new Response(`<html>${KEY}${'x'.repeat(100_000)}`, { status: 503 }),
      5,
      '503 <html>[sealed]xxx',
    ],
    [
      'a redirect',
      () => new Response(null, { status: 302, headers: { Location: `https://elsewhere.example/?k=${KEY}` } }),
      1,
      '(status 302) to https://elsewhere.example/?k=[sealed]: set OPENAI_BASE_URL',
    ],
    [
      'a refusal',
      () => Response.json({ choices: [{ message: { content: null, refusal: 'I would rather not.' } }] }),
      1,
      'The model gave no text: I would rather not.',
    ],
    [
      'no text',
      () => Response.json({ choices: [{ message: { content: null }, finish_reason: 'length' }] }),
      1,
      'The model gave no text: length',
    ],
    ['more than anybody reads', () => html('x'.repeat(5_000_000)), 1, 'has more than 4194304 bytes'],
  ] as [string, () => Response, number, string][])(
    'a provider that answers with %s is a 502, in a sentence and its own words',
    async (_, answer, attempts, says) => {
      let asks = 0
      await using provider = await oddProvider(() => {
        asks++
        return answer()
      })
      const task = await provider.asked()
      expect(task).toMatchObject({ status: 'failed', status_code: 502, attempt: attempts })
      const { message } = task['error'] as { message: string }
      expect(message).toContain(says)
      expect(message).not.toMatch(/undefined|evaluating|SyntaxError|is not/)
      expect(message.length).toBeLessThan(700)
      expect(asks).toBe(attempts)
    },
  )

  test('a provider that answers at length, and then stops, is given up at the time limit', async () => {
    const began = Promise.withResolvers<void>()
    await using provider = await oddProvider(() => {
      const body = new ReadableStream({
        start(controller) {
          controller.enqueue(new TextEncoder().encode('{"choices":[{"message":'))
          began.resolve()
        },
      })
      return new Response(body, { headers: { 'Content-Type': 'application/json' } })
    })
    const id = await ask()
    const stop = new AbortController()
    const draining = provider.worker.drain({}, stop.signal)
    await began.promise
    await cancelTree({ broker: store.broker, contracts, now: clock.now }, id)
    clock.advance(30_000)
    await draining
    expect(await get(id)).toMatchObject({ status: 'cancelled' })
  })

  test('each attempt sends the key that names the task, so that a provider can tell that it is the same question', async () => {
    const keys: (string | null)[] = []
    await using provider = await oddProvider((request) => {
      keys.push(request.headers.get('Idempotency-Key'))
      if (keys.length < 3) return new Response('Busy.', { status: 503 })
      return Response.json({ choices: [{ message: { content: 'Scattering.' } }] })
    })
    const task = await provider.asked()
    expect(task).toMatchObject({ status: 'succeeded', attempt: 3 })
    expect(keys).toEqual([task['task_id'], task['task_id'], task['task_id']] as string[])
  })

  test('ids and keys that no header may have are no error of a header', async () => {
    const keys: (string | null)[] = []
    await using provider = await oddProvider((request) => {
      keys.push(request.headers.get('Idempotency-Key'))
      return Response.json({ choices: [{ message: { content: 'Scattering.' } }] })
    })
    const add = (id: string, api_key: string) => {
      const envelope = JSON.stringify({ task_id: id, v: 1, kind: 'chat', payload: { question: 'Why?', api_key } })
      return store.broker.enqueue([{ id, kind: 'chat', priority: 'normal', envelope }])
    }
    await add('日本 "1"', 'in-clear')
    for (const [index, key] of ['schlüssel', 'a\nb', '日本'].entries()) await add(`wrong-${index}`, key)
    await provider.worker.drain()
    expect(await get(encodeURIComponent('日本 "1"'))).toMatchObject({ status: 'succeeded' })
    expect(keys).toEqual([encodeURIComponent('日本 "1"')])
    for (const index of [0, 1, 2]) {
      expect(await get(`wrong-${index}`)).toMatchObject({
        status: 'failed',
        status_code: 400,
        attempt: 1,
        error: { message: 'Invalid API key' },
      })
    }
  })
})
