import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, spyOn, test } from 'bun:test'
import { type ErrorResponse, LLMock } from '@copilotkit/aimock'
import { createApp as createCreator } from '#services/creator/app.ts'
import { createApp as createManager } from '#services/manager/app.ts'
import { contracts } from '#services/workers/contracts.ts'
import conversation from '#services/workers/conversation/worker.ts'
import { cancelTree } from '#shared/broker/tree.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
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
    const keyring = await createKeyring([newKey()])
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
})
