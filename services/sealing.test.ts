/** What the doors let out: no answer and no line of a log of creator and manager has a secret in it, however a task comes and ends. */
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createApp as createCreator } from './creator/app.ts'
import { createApp as createManager } from './manager/app.ts'
import { createChat } from './workers/chat/worker.ts'
import { contracts } from './workers/contracts.ts'
import conversation from './workers/conversation/worker.ts'

// With what the forms below write in other ways, and quotes that JSON escapes.
const SECRET = 'sk-"top/secret"+key=42&more?'

const PAYLOADS: Record<string, Record<string, unknown>> = {
  chat: { question: 'Why?', api_key: SECRET },
  conversation: { topic: 'doors', n: 2, api_key: SECRET },
}

/** Every form in which a secret would be readable. */
const FORMS: Record<string, string[]> = {
  clear: [SECRET, JSON.stringify(SECRET).slice(1, -1)],
  'a part in clear': ['top/secret', 'key=42'],
  base64: [0, 1, 2].flatMap((shift) => base64At(shift)),
  hex: [Buffer.from(SECRET).toString('hex'), Buffer.from(SECRET).toString('hex').toUpperCase()],
  URL: [encodeURIComponent(SECRET), encodeURI(SECRET), new URLSearchParams({ k: SECRET }).toString().slice(2)],
}

/** The secret in base64 when so many bytes stand before it, without the characters that they have a part in. */
function base64At(shift: number): string[] {
  const text = Buffer.from('x'.repeat(shift) + SECRET).toString('base64')
  const inner = text.slice(shift === 0 ? 0 : 4, -4)
  return [inner, inner.replaceAll('+', '-').replaceAll('/', '_')]
}

/** A provider that quotes the key in whatever it says. */
let answerOf: (key: string) => Response = () => new Response()
const provider = Bun.serve({
  port: 0,
  hostname: '127.0.0.1',
  fetch: (request) => answerOf(request.headers.get('Authorization')?.replace('Bearer ', '') ?? ''),
})
afterAll(() => provider.stop(true))

const completion = (content: string) => Response.json({ choices: [{ message: { role: 'assistant', content } }] })
const providerError = (status: number, message: string) =>
  Response.json({ error: { message, code: 'bad' } }, { status })

let scene: Awaited<ReturnType<typeof open>>
beforeEach(async () => {
  scene = await open()
})
afterEach(() => scene.broker.close())

async function open() {
  const broker = createSqliteBroker({ path: ':memory:' })
  const keyring = await createKeyring([newKey()])
  const lines: string[] = []
  const log = createLogger('debug', (line) => lines.push(line))
  const auth = await createAuth([{ token: 'good', scopes: ['create', 'read', 'manage'] }])
  const creator = createCreator({ broker, contracts, keyring, managerUrl: 'http://manager', log, auth })
  const manager = createManager({ broker, contracts, log, auth })
  const chat = createChat({ baseUrl: `http://127.0.0.1:${provider.port}/v1`, model: 'm' })
  const worker = createWorker({ broker, log, keyring, implementations: [chat, conversation] })
  const shown: string[] = []
  const show = async (response: Response) => {
    const text = await response.text()
    shown.push(`${JSON.stringify([...response.headers])}\n${text}`)
    return { status: response.status, text, id: /"task_id":"([^"]+)"/.exec(text)?.[1] ?? '' }
  }
  const authorized = { Authorization: 'Bearer good' }
  return {
    broker,
    lines,
    shown,
    drain: () => worker.drain(),
    post: async (path: string, body: unknown, headers: Record<string, string> = {}) => {
      const text = typeof body === 'string' ? body : JSON.stringify(body)
      const given = { 'Content-Type': 'application/json', ...authorized, ...headers }
      return show(await creator.request(path, { method: 'POST', body: text, headers: given }))
    },
    ask: async (path: string, method = 'GET', headers: Record<string, string> = {}) =>
      show(await manager.request(path, { method, headers: { ...authorized, ...headers } })),
  }
}

/** Asks for the task in every way there is, and looks for the secret in all that was said. */
async function expectSealed(id?: string) {
  if (id !== undefined) {
    for (const path of [`/task/${id}`, `/task/${id}?wait=0`, `/tasks?parent=${id}`]) await scene.ask(path)
    await scene.ask(`/task/${id}`, 'GET', { Accept: 'text/plain' })
  }
  for (const path of ['/tasks', '/stats']) await scene.ask(path)
  const all = [...scene.shown, ...scene.lines]
  expect(all.length).toBeGreaterThan(2)
  for (const [form, texts] of Object.entries(FORMS)) {
    for (const text of texts)
      expect(all.filter((one) => one.includes(text)).map((one) => `${form}: ${one}`)).toEqual([])
  }
}

test('the forms that are looked for would be found', () => {
  for (const shift of [0, 1, 2, 3, 4, 5]) {
    const hidden = Buffer.from(`${'y'.repeat(shift)}${SECRET}zz`).toString('base64')
    expect(FORMS['base64']?.some((form) => hidden.includes(form))).toBe(true)
  }
  expect(JSON.stringify({ a: SECRET })).toContain(FORMS['clear']?.[1] ?? '')
})

describe.each(Object.keys(PAYLOADS))('a secret of %s is in no answer and no log', (kind) => {
  const payload = PAYLOADS[kind] ?? {}
  const create = async (headers: Record<string, string> = {}) => {
    const created = await scene.post(`/${kind}`, { payload }, headers)
    expect(created.status).toBe(201)
    await scene.ask(`/task/${created.id}`)
    return created.id
  }

  test('when the task succeeds', async () => {
    answerOf = () => completion('Because.')
    const id = await create()
    await scene.drain()
    expect(await scene.ask(`/task/${id}`)).toMatchObject({ text: expect.stringContaining('"succeeded"') })
    await expectSealed(id)
  })

  test.each([
    ['and quotes the key', (key: string) => providerError(400, `What is ${key}? And ${JSON.stringify(key)}?`)],
    ['and calls the key wrong', (key: string) => providerError(401, `Incorrect API key provided: ${key}.`)],
    ['with the key as its text', (key: string) => new Response(key, { status: 403 })],
    ['for a while', (key: string) => providerError(500, `We failed for ${key}`)],
  ])('when the provider refuses, %s', async (_, refusal) => {
    answerOf = refusal
    const id = await create()
    await scene.drain()
    await expectSealed(id)
  })

  test('when it is cancelled, tried again or deleted', async () => {
    const id = await create()
    expect((await scene.ask(`/task/${id}/cancel`, 'POST')).status).toBe(200)
    await expectSealed(id)
    expect((await scene.ask(`/task/${id}/retry`, 'POST')).status).toBe(409)
    expect((await scene.ask(`/task/${id}`, 'DELETE')).status).toBe(200)
    expect((await scene.ask(`/task/${id}`)).status).toBe(404)
    await expectSealed(id)
  })

  test('when it is created again, or with another payload', async () => {
    const key = { 'Idempotency-Key': 'order-1' }
    const id = await create(key)
    expect((await scene.post(`/${kind}`, payload, key)).id).toBe(id)
    const other = Object.fromEntries(
      Object.entries(payload).map(([name, value]) => [name, name === 'question' || name === 'topic' ? 'else' : value]),
    )
    expect((await scene.post(`/${kind}`, other, key)).status).toBe(409)
    await expectSealed(id)
  })

  test('when the request is refused', async () => {
    const misfits = [
      { secret: SECRET },
      [SECRET],
      { ...payload, api_key: [SECRET] },
      { api_key: { key: SECRET } },
      JSON.stringify(SECRET),
    ]
    const swapped = Object.keys(payload).flatMap((name) => [
      { ...payload, [name]: { nested: SECRET } },
      { ...payload, [name]: [SECRET] },
    ])
    const options = ['priority', 'run_at', 'delay_ms', 'max_attempts'].map((name) => ({ [name]: SECRET }))
    for (const body of [
      ...misfits,
      ...swapped,
      ...options.map((option) => ({ payload, options: option })),
      { payload, options: SECRET },
      { payload: { ...payload, model: [SECRET] } },
    ]) {
      expect((await scene.post(`/${kind}`, body)).status).toBe(422)
      expect((await scene.post(`/${kind}/batch`, { payloads: [payload, body] })).status).toBe(422)
    }
    const json = JSON.stringify({ payload })
    const at = json.indexOf(JSON.stringify(SECRET))
    const broken = [at, at + 5, at + 14, json.length - 1].map((end) => json.slice(0, end))
    for (const body of [...broken, `${json}x`, json.replace('"sk-', 'sk-'), json.replace('"}', '\u0001"}')]) {
      expect((await scene.post(`/${kind}`, body)).status).toBe(400)
    }
    const refusals: [status: number, path: string, body: string, headers: Record<string, string>][] = [
      [413, `/${kind}`, json + ' '.repeat(2 ** 20), {}],
      [415, `/${kind}`, json, { 'Content-Type': 'text/plain' }],
      [415, `/${kind}`, json, { 'Content-Encoding': 'gzip' }],
      [400, `/${kind}`, json, { 'Idempotency-Key': '' }],
      [400, `/${kind}/batch`, json, { 'Idempotency-Key': 'k' }],
      [401, `/${kind}`, json, { Authorization: `Bearer ${SECRET.replaceAll('"', '')}` }],
      [404, '/nope', json, {}],
    ]
    for (const [status, path, body, headers] of refusals) {
      expect((await scene.post(path, body, headers)).status).toBe(status)
    }
    await expectSealed()
  })

  test('when the store fails', async () => {
    const { broker } = scene
    await broker.close()
    expect((await scene.post(`/${kind}`, { payload })).status).toBe(503)
    expect((await scene.post(`/${kind}`, { payload }, { 'Idempotency-Key': 'k' })).status).toBe(503)
    await expectSealed()
  })
})
