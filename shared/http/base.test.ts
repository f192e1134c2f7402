import { describe, expect, test } from 'bun:test'
import { HTTPException } from 'hono/http-exception'
import { createLogger } from '#shared/runtime/log.ts'
import { InvalidInput, StateConflict, StoreUnavailable, TaskNotFound } from '#shared/task/errors.ts'
import { MAX_DEPTH } from '#shared/task/limits.ts'
import { createAuth, requireScope } from './auth.ts'
import { createBase } from './base.ts'
import { jsonOnly, MAX_BODY, wantsText } from './body.ts'
import { readJson } from './json.ts'
import { problemAnswer } from './problem.ts'
import { readQuery } from './query.ts'

async function setup(ready: () => Promise<void> = async () => {}) {
  const lines: string[] = []
  const log = createLogger('debug', (line) => lines.push(line))
  const app = createBase({ service: 'test', about: { links: { x: '/x' } }, log, ready, unknownPath: 'Nothing here.' })
  const auth = await createAuth([
    { token: 'all', scopes: ['create', 'read', 'manage'] },
    { token: 'reader', scopes: ['read'] },
  ])
  app.post('/echo', jsonOnly, async (c) => c.json({ got: await readJson(c) }))
  app.get('/echo', (c) => c.text(wantsText(c) ? 'text' : 'json'))
  app.get('/secured', requireScope(auth, 'manage'), (c) => c.text('in'))
  app.get('/throw/:what', (c) => {
    throw THROWN[c.req.param('what')] ?? new Error('unknown')
  })
  return { app, lines }
}

const THROWN: Record<string, Error> = {
  invalid: new InvalidInput('Does not fit.', [{ path: 'payload.n', message: 'Required: number' }]),
  missing: new TaskNotFound('t1'),
  conflict: new StateConflict('Task t1 has ended.'),
  store: new StoreUnavailable('enqueue: ECONNREFUSED 10.0.0.1', { cause: new Error('socket closed') }),
  bug: new Error('password=hunter2'),
  teapot: new HTTPException(418, {
    message: 'Teapot',
    res: new Response('no', { status: 418, headers: { Allow: 'GET', 'Retry-After': '7', 'Content-Length': '2' } }),
  }),
}

const json = { 'Content-Type': 'application/json' }

describe('errors are problem+json', () => {
  const cases: [path: string, status: number, body: object, headers?: Record<string, string>][] = [
    ['/nowhere', 404, { type: 'urn:tasker:problem:not-found', title: 'Not found', detail: 'Nothing here.' }],
    [
      '/throw/invalid',
      422,
      { type: 'urn:tasker:problem:invalid-input', errors: [{ path: 'payload.n', message: 'Required: number' }] },
    ],
    ['/throw/missing', 404, { type: 'urn:tasker:problem:task-not-found', detail: expect.stringContaining('t1') }],
    ['/throw/conflict', 409, { type: 'urn:tasker:problem:state-conflict', detail: 'Task t1 has ended.' }],
    ['/throw/store', 503, { type: 'urn:tasker:problem:store-unavailable' }, { 'Retry-After': '1' }],
    ['/throw/bug', 500, { type: 'urn:tasker:problem:internal' }],
    ['/throw/teapot', 418, { type: 'about:blank', title: 'Teapot' }, { Allow: 'GET', 'Retry-After': '7' }],
  ]
  test.each(cases)('%s answers %i', async (path, status, body, headers = {}) => {
    const { app } = await setup()
    const response = await app.request(path, { headers: { 'X-Request-Id': 'req-1' } })
    expect(response.status).toBe(status)
    expect(response.headers.get('Content-Type')).toBe('application/problem+json')
    expect(response.headers.get('X-Request-Id')).toBe('req-1')
    expect(await response.json()).toMatchObject({ status, instance: path, ...body })
    for (const [name, value] of Object.entries(headers)) expect(response.headers.get(name)).toBe(value)
  })

  test('what nobody foresaw is told to the log and not to the caller', async () => {
    const { app, lines } = await setup()
    const text = await (await app.request('/throw/bug')).text()
    expect(text).not.toMatch(/hunter2|base\.test/)
    expect(lines.join('\n')).toMatch(/hunter2[\s\S]*base\.test/)
  })

  test('an outage is logged with its cause and without a stack, and its cause is not told', async () => {
    const { app, lines } = await setup()
    const text = await (await app.request('/throw/store')).text()
    expect(text).not.toContain('ECONNREFUSED')
    const logged = JSON.parse(lines.find((line) => line.includes('"ERROR"')) ?? '{}')
    expect(logged).toMatchObject({ error: 'StoreUnavailable: enqueue: ECONNREFUSED 10.0.0.1', cause: 'socket closed' })
    expect(logged.stack).toBeUndefined()
  })
})

test('a validation that finds more than anybody reads tells the first of it, in short', () => {
  const issues = Array.from({ length: 100_000 }, (_, i) => ({ path: `payload.${i}`, message: 'x'.repeat(1_000) }))
  const { body } = problemAnswer(new InvalidInput('Does not fit.', issues))
  const { errors } = JSON.parse(body) as { errors: { path: string; message: string }[] }
  expect(errors).toHaveLength(101)
  expect(errors[0]).toEqual({ path: 'payload.0', message: `${'x'.repeat(500)}…` })
  expect(errors[100]).toEqual({ path: '', message: 'And 99900 more' })
})

test('the instance of a problem is a URI reference, whatever the path', async () => {
  const { app } = await setup()
  const instance = async (url: string) => {
    const response = await app.request(new Request(url))
    return ((await response.json()) as { instance: string }).instance
  }
  for (const [path, expected] of [
    ['/a b/ü', '/a%20b/%C3%BC'],
    ['/a%20b/%c3%bc', '/a%20b/%c3%bc'],
    ['/100%/|[x]^`{}"', '/100%25/%7C%5Bx%5D%5E%60%7B%7D%22'],
    ['//evil.example/x', '/.//evil.example/x'],
    ['/x?_token=hush', '/x'],
  ] as const) {
    expect(await instance(`http://localhost${path}`)).toBe(expected)
  }
})

describe('methods', () => {
  test('a wrong one is a 405 that names the right ones', async () => {
    const { app } = await setup()
    for (const method of ['PUT', 'DELETE', 'PATCH', 'OPTIONS']) {
      const response = await app.request('/echo', { method, headers: { 'X-Request-Id': 'req-1' } })
      expect(response.status).toBe(405)
      expect(response.headers.get('Allow')?.split(', ').toSorted()).toEqual(['GET', 'HEAD', 'POST'])
      expect(response.headers.get('Content-Type')).toBe('application/problem+json')
      expect(response.headers.get('X-Request-Id')).toBe('req-1')
      expect(await response.json()).toMatchObject({ status: 405, type: 'urn:tasker:problem:method-not-allowed' })
    }
  })

  test('a 404 from a route stays a 404', async () => {
    const { app } = await setup()
    expect((await app.request('/throw/missing')).status).toBe(404)
  })

  test('HEAD is GET without a body', async () => {
    const { app } = await setup()
    const response = await app.request('/', { method: 'HEAD' })
    expect(response.status).toBe(200)
    expect(await response.text()).toBe('')
  })

  test('HEAD tells the length of what GET would answer, errors too, and nothing of what has no end', async () => {
    const { app } = await setup()
    app.get('/events', (c) => c.body(new ReadableStream(), 200, { 'Content-Type': 'text/event-stream' }))
    const headers = { Host: 'a', 'X-Request-Id': 'r' }
    for (const path of ['/', '/healthz', '/readyz', '/echo', '/nowhere', '/throw/bug', '/secured']) {
      const length = (await (await app.request(path, { headers })).arrayBuffer()).byteLength
      const head = await app.request(path, { method: 'HEAD', headers })
      expect([path, head.headers.get('Content-Length')]).toEqual([path, String(length)])
    }
    expect((await app.request('/events', { method: 'HEAD' })).headers.has('Content-Length')).toBe(false)
  })
})

describe('the query', () => {
  const ask = async (path: string) => {
    const { app } = await setup()
    app.get('/query', (c) => c.json(readQuery(c, ['a', 'b'])))
    return app.request(path)
  }

  test('is what the route knows', async () => {
    expect(await (await ask('/query?a=1&b=%C3%BC+x')).json()).toEqual({ a: '1', b: 'ü x' })
    expect(await (await ask('/query')).json()).toEqual({})
    expect((await ask('/healthz?nocache=1')).status).toBe(200)
  })

  test('names every parameter that is unknown, or there twice, in a 422', async () => {
    const refused = await ask('/query?a=1&limt=2&a=3&__proto__=x&toString')
    expect(refused.status).toBe(422)
    const { errors } = (await refused.json()) as { errors: { path: string; message: string }[] }
    expect(errors.map(({ path }) => path)).toEqual(['a', 'limt', '__proto__', 'toString'])
    expect(errors.map(({ message }) => message)).toEqual([
      'Given more than once',
      ...Array(3).fill('Unknown parameter: this route knows a, b'),
    ])
  })
})

describe('bodies', () => {
  const post = async (body: BodyInit | null, headers: Record<string, string> = json) =>
    (await setup()).app.request('/echo', { method: 'POST', body, headers })

  test('JSON is read, with a charset too', async () => {
    expect(await (await post('{"a":1}')).json()).toEqual({ got: { a: 1 } })
    expect((await post('{}', { 'Content-Type': 'Application/JSON; charset=utf-8' })).status).toBe(200)
  })

  test('another type, or none, is a 415', async () => {
    for (const type of [
      'text/plain',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'application/jsonx',
    ]) {
      expect((await post('{}', { 'Content-Type': type })).status).toBe(415)
    }
    expect((await post(new Blob(['{}']), {})).status).toBe(415)
  })

  test('malformed JSON and an empty body are a 400 that does not quote them', async () => {
    for (const body of ['{"api_key":"sk-secret",}', '', '   ', '{', '['.repeat(500_000)]) {
      const response = await post(body)
      expect(response.status).toBe(400)
      expect(await response.text()).not.toContain('sk-secret')
    }
    expect((await post(null, {})).status).toBe(400)
  })

  test('what is nested too deeply is a 400 that says so, and brackets in texts are no levels', async () => {
    const nested = (levels: number, inner = '') => '['.repeat(levels) + inner + ']'.repeat(levels)
    const inText = JSON.stringify('\\"['.repeat(500))
    expect((await post(nested(MAX_DEPTH, inText))).status).toBe(200)
    expect((await post(JSON.stringify(Array(200).fill({ a: [1] })))).status).toBe(200)
    for (const body of [nested(MAX_DEPTH + 1), nested(500_000), `${'{"a":'.repeat(101)}1${'}'.repeat(101)}`]) {
      const response = await post(body)
      expect(response.status).toBe(400)
      expect(await response.json()).toMatchObject({ detail: expect.stringContaining('100 levels') })
    }
  })

  test('text in another encoding is a 400, a byte order mark is not', async () => {
    expect(await (await post(new TextEncoder().encode('\ufeff{"a":"ü"}'))).json()).toEqual({ got: { a: 'ü' } })
    for (const body of [
      [0x22, 0xff, 0x22],
      [0x22, 0xc0, 0xaf, 0x22],
      [0xff, 0xfe, 0x31, 0x00],
    ]) {
      const response = await post(new Uint8Array(body))
      expect(response.status).toBe(400)
      expect(await response.text()).toContain('UTF-8')
    }
  })

  test('a compressed body is a 415 that says so', async () => {
    const response = await post(Bun.gzipSync('{}'), { ...json, 'Content-Encoding': 'gzip' })
    expect(response.status).toBe(415)
    expect(response.headers.get('Accept-Encoding')).toBe('identity')
    expect(await response.text()).toContain('compressed')
    expect((await post('{}', { ...json, 'Content-Encoding': 'Identity' })).status).toBe(200)
  })

  test('a body that breaks off is the caller’s mistake, and no error of the service', async () => {
    const { app, lines } = await setup()
    const broken = new ReadableStream({
      pull: (controller) => controller.error(new Error('The connection was closed.')),
    })
    const response = await app.request('/echo', { method: 'POST', body: broken, headers: json })
    expect(response.status).toBe(400)
    expect(lines.join()).not.toContain('"ERROR"')
  })

  test('a body over the limit is a 413, one at the limit is not', async () => {
    const fits = JSON.stringify('x'.repeat(MAX_BODY - 2))
    expect((await post(fits)).status).toBe(200)
    expect((await post(`${fits} `)).status).toBe(413)
    expect((await post(`${fits} `, { ...json, 'Content-Length': String(MAX_BODY + 1) })).status).toBe(413)
  })

  test('a stream without a length is cut off at the limit', async () => {
    let sent = 0
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        sent += 65_536
        controller.enqueue(new Uint8Array(65_536).fill(32))
      },
    })
    const response = await post(endless)
    expect(response.status).toBe(413)
    expect(sent).toBeLessThan(MAX_BODY * 2)
  })
})

describe('tokens', () => {
  const ask = async (authorization?: string) =>
    (await setup()).app.request('/secured', authorization ? { headers: { Authorization: authorization } } : {})

  test('a token with the scope is let in', async () => {
    expect((await ask('Bearer all')).status).toBe(200)
    expect((await ask('bearer  all')).status).toBe(200)
  })

  test('none, a wrong one and another scheme are a 401 with a challenge', async () => {
    for (const authorization of [undefined, 'Bearer wrong', 'Bearer all2', 'Basic all', 'Bearer', 'all']) {
      const response = await ask(authorization)
      expect(response.status).toBe(401)
      expect(response.headers.get('WWW-Authenticate')).toStartWith('Bearer realm="tasker"')
      expect(response.headers.get('Content-Type')).toBe('application/problem+json')
    }
  })

  test('one that lacks the scope is a 403 that names it', async () => {
    const response = await ask('Bearer reader')
    expect(response.status).toBe(403)
    expect(response.headers.get('WWW-Authenticate')).toContain('scope="manage"')
    expect(await response.text()).not.toContain('reader')
  })

  test('without any token set everything is let in', async () => {
    expect(await createAuth([])).toBeNull()
  })
})

describe('the service', () => {
  test('names itself and is alive', async () => {
    const { app } = await setup()
    expect(await (await app.request('/')).json()).toEqual({ service: 'test', links: { x: '/x' } })
    expect((await app.request('/healthz')).status).toBe(200)
    expect((await app.request('/readyz')).status).toBe(200)
  })

  test('is not ready while the store does not answer, and alive still', async () => {
    const { app } = await setup(async () => {
      throw new StoreUnavailable('ping')
    })
    const response = await app.request('/readyz')
    expect(response.status).toBe(503)
    expect(response.headers.get('Retry-After')).toBe('1')
    expect((await app.request('/healthz')).status).toBe(200)
  })

  test('makes a request id when none comes, or one unfit for a log', async () => {
    const { app } = await setup()
    const made = (await app.request('/healthz')).headers.get('X-Request-Id')
    expect(made).toMatch(/^[0-9a-f-]{36}$/)
    const other = await app.request('/healthz', { headers: { 'X-Request-Id': 'a b"c' } })
    expect(other.headers.get('X-Request-Id')).toMatch(/^[0-9a-f-]{36}$/)
  })

  test('logs a line for each request', async () => {
    const { app, lines } = await setup()
    await app.request('/healthz?token=x', { headers: { 'X-Request-Id': 'req-1' } })
    expect(lines).toHaveLength(1)
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      level: 'DEBUG',
      service: 'test',
      request_id: 'req-1',
      method: 'GET',
      path: '/healthz',
      status: 200,
    })
  })

  test('the plain form is for those who ask for it', async () => {
    const { app } = await setup()
    const form = async (accept: string) => (await app.request('/echo', { headers: { Accept: accept } })).text()
    expect(await form('text/plain')).toBe('text')
    expect(await form('*/*')).toBe('json')
    expect(await form('text/html,application/xhtml+xml,*/*;q=0.8')).toBe('json')
    expect(await form('application/json, text/plain;q=0.5')).toBe('json')
  })
})
