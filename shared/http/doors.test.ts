import { describe, expect, test } from 'bun:test'
import { silentLog } from '#shared/runtime/log.ts'
import { createAuth, requireScope } from './auth.ts'
import { createBase } from './base.ts'
import { type Doors, PLAIN_DOORS } from './doors.ts'
import { createLimiter } from './limiter.ts'

const sha256 = (text: string) => new Bun.CryptoHasher('sha256').update(text).digest('hex')

async function setup(doors: Partial<Doors> = {}, tokens = ['first', 'second']) {
  const auth = await createAuth(tokens.map((token) => ({ token, scopes: ['read'] })))
  const app = createBase({
    ...{ service: 'test', about: {}, log: silentLog, unknownPath: 'Nothing here.' },
    ready: async () => {},
    doors: { ...PLAIN_DOORS, ...doors },
    auth,
  })
  app.get('/secured', requireScope(auth, 'read'), (c) => c.text('in'))
  app.get('/fails', () => {
    throw new Error('a bug')
  })
  app.get('/kept', (c) => c.text('page', 200, { 'Cache-Control': 'max-age=60' }))
  /** Sends a request from an address, as the server does. */
  const ask = (
    path: string,
    { from, ...headers }: { from?: string; [name: string]: string | undefined } = {},
    method = 'GET',
  ) => {
    const given = Object.entries(headers).filter((entry): entry is [string, string] => entry[1] !== undefined)
    const connection = from === undefined ? {} : { address: () => from }
    return app.request(path, { method, headers: given }, connection)
  }
  const bearer = (token: string) => ({ Authorization: `Bearer ${token}` })
  return { app, ask, bearer }
}

/** Nobody may come twice. */
const once = () => createLimiter({ perSecond: 1, burst: 1 }, { now: () => 0 })

describe('tokens', () => {
  test('one that is listed by its digest is known, and the digest itself opens nothing', async () => {
    const digest = sha256('hush')
    const { ask, bearer } = await setup({}, [`sha256:${digest}`])
    expect((await ask('/secured', bearer('hush'))).status).toBe(200)
    for (const wrong of [`sha256:${digest}`, digest, 'hush2']) {
      const refused = await ask('/secured', bearer(wrong))
      expect(refused.status).toBe(401)
      expect(refused.headers.get('WWW-Authenticate')).toBe('Bearer realm="tasker", error="invalid_token"')
    }
  })

  test('two are good at the same time, so that one can take the place of the other', async () => {
    const { ask, bearer } = await setup({}, ['old', `sha256:${sha256('new')}`])
    for (const token of ['old', 'new']) expect((await ask('/secured', bearer(token))).status).toBe(200)
  })
})

describe('the limit of requests', () => {
  const statuses = async (responses: (Response | Promise<Response>)[]) =>
    (await Promise.all(responses)).map(({ status }) => status)

  test('beyond it is a 429 that says when to come again', async () => {
    const { ask } = await setup({ limiter: createLimiter({ perSecond: 1, burst: 2 }, { now: () => 0 }) })
    const first = await ask('/', { from: '192.0.2.1' })
    expect(first.headers.get('RateLimit-Policy')).toBe('"default";q=2;w=2')
    expect(first.headers.get('RateLimit')).toBe('"default";r=1;t=0')
    await ask('/', { from: '192.0.2.1' })
    const refused = await ask('/', { from: '192.0.2.1' })
    expect(refused.status).toBe(429)
    expect(refused.headers.get('Retry-After')).toBe('1')
    expect(refused.headers.get('RateLimit')).toBe('"default";r=0;t=1')
    expect(refused.headers.get('Content-Type')).toBe('application/problem+json')
    expect(await refused.json()).toMatchObject({ type: 'urn:tasker:problem:too-many-requests', status: 429 })
  })

  test('is each address’s own, and that of an IPv6 network of one customer', async () => {
    const { ask } = await setup({ limiter: once() })
    const from = (address: string) => ask('/', { from: address })
    expect(await statuses([from('192.0.2.1'), from('192.0.2.2'), from('::ffff:192.0.2.1')])).toEqual([200, 200, 429])
    const network = ['2001:db8:0:1::1', '2001:db8:0:1:ffff::2', '2001:DB8::1:0:0:0:3', '2001:db8:0:2::1']
    expect(await statuses(network.map(from))).toEqual([200, 429, 429, 200])
  })

  test('is each token’s own, wherever it comes from', async () => {
    const { ask, bearer } = await setup({ limiter: once() })
    const responses = [
      ask('/secured', { ...bearer('first'), from: '192.0.2.1' }),
      ask('/secured', { ...bearer('first'), from: '192.0.2.2' }),
      ask('/secured', { ...bearer('second'), from: '192.0.2.1' }),
    ]
    expect(await statuses(responses)).toEqual([200, 429, 200])
  })

  test('counts those who guess tokens by their address', async () => {
    const { ask, bearer } = await setup({ limiter: once() })
    const guesses = ['a', 'b', 'c'].map((guess) => ask('/secured', { ...bearer(guess), from: '192.0.2.1' }))
    expect(await statuses(guesses)).toEqual([401, 429, 429])
  })

  test('leaves /healthz free, and who has no address', async () => {
    const { ask } = await setup({ limiter: once() })
    const responses = [
      ask('/healthz', { from: '192.0.2.1' }),
      ask('/healthz', { from: '192.0.2.1' }),
      ask('/'),
      ask('/'),
    ]
    expect(await statuses(responses)).toEqual([200, 200, 200, 200])
  })

  test('is one for all connections of an address, whether a proxy writes their ports, brackets or neither', async () => {
    const { ask } = await setup({ limiter: once(), trustedProxies: 1 })
    const told = (said: string) => ask('/', { from: '10.0.0.1', 'X-Forwarded-For': said })
    const v4 = [
      '192.0.2.1:50000',
      '192.0.2.1:50001',
      '192.0.2.1',
      '"192.0.2.1:1"',
      '[::ffff:192.0.2.1]:1',
      '::ffff:c000:201',
    ]
    expect(await statuses(v4.map(told))).toEqual([200, 429, 429, 429, 429, 429])
    const v6 = ['[2001:db8::1]:50000', '[2001:db8::1]:50001', '[2001:DB8::2]', '2001:db8::3', '"[2001:db8::4]:1"']
    expect(await statuses(v6.map(told))).toEqual([200, 429, 429, 429, 429])
    expect(
      await statuses(['::ffff:c000:202', '[2001:db8:0:1::1]:50000', 'fe80::1%eth0', 'fe80::1%eth1'].map(told)),
    ).toEqual([...[200, 200, 200, 429]])
  })

  test('believes X-Forwarded-For only behind proxies, and only what they wrote', async () => {
    const via = { from: '10.0.0.1' }
    const plain = await setup({ limiter: once() })
    const told = (said: string) => plain.ask('/', { ...via, 'X-Forwarded-For': said })
    expect(await statuses([told('192.0.2.1'), told('192.0.2.2')])).toEqual([200, 429])

    const behindOne = await setup({ limiter: once(), trustedProxies: 1 })
    const one = (said: string) => behindOne.ask('/', { ...via, 'X-Forwarded-For': said })
    const chains = ['192.0.2.1', '192.0.2.2', '192.0.2.9, 192.0.2.1', '192.0.2.3 ,  192.0.2.4']
    expect(await statuses(chains.map(one))).toEqual([200, 200, 429, 200])

    const behindTwo = await setup({ limiter: once(), trustedProxies: 2 })
    const two = (said: string) => behindTwo.ask('/', { ...via, 'X-Forwarded-For': said })
    expect(await statuses(['a, 192.0.2.1, 10.0.0.2', 'b, 192.0.2.1, 10.0.0.3'].map(two))).toEqual([200, 429])
    expect((await behindTwo.ask('/', via)).status).toBe(200)
  })
})

describe('the name that a service is called by', () => {
  test('must be this machine’s, where nothing else keeps a page out whose name points here', async () => {
    const { ask } = await setup({ hosts: [] })
    for (const host of [
      'localhost',
      'LOCALHOST:5000',
      'tasker.localhost:5000',
      '127.0.0.1:5000',
      '127.1.2.3',
      '[::1]:5000',
    ]) {
      expect((await ask('/', { Host: host })).status).toBe(200)
    }
    for (const host of [
      'evil.example',
      'localhost.evil.example:5000',
      '127.0.0.1.evil.example',
      '127.evil.example',
      'evil-localhost',
      '10.0.0.1',
    ]) {
      const refused = await ask('/healthz', { Host: host })
      expect(refused.status).toBe(421)
      expect(await refused.json()).toMatchObject({ type: 'urn:tasker:problem:misdirected' })
    }
  })

  test('may be one that is named, as in front of containers that are published on this machine alone', async () => {
    const { ask } = await setup({ hosts: ['creator', 'tasks.example'] })
    for (const host of ['localhost:5000', '127.0.0.1', 'creator:5000', 'Tasks.Example'])
      expect((await ask('/', { Host: host })).status).toBe(200)
    for (const host of ['evil.example', 'creator.evil.example'])
      expect((await ask('/', { Host: host })).status).toBe(421)
  })

  test('is not needed for health checks, which may come without one, and for all else it is', async () => {
    const { ask } = await setup({ hosts: [] })
    for (const path of ['/healthz', '/readyz']) expect((await ask(path)).status).toBe(200)
    for (const path of ['/', '/secured', '/abc/healthz']) expect((await ask(path)).status).toBe(421)
    expect((await ask('/', { Host: '' })).status).toBe(421)
  })

  test('is one name, perhaps with a port, and nothing else: else 400', async () => {
    const { ask } = await setup()
    const wrong = [
      'localhost, evil.example',
      'localhost, localhost',
      'localhost@evil.example',
      'localhost/x?y',
      'a b',
      '[::1',
    ]
    for (const host of [...wrong, 'localhost:port', 'localhost:5000:1']) {
      const refused = await ask('/healthz', { Host: host })
      expect([host, refused.status]).toEqual([host, 400])
      expect(await refused.json()).toMatchObject({ type: 'urn:tasker:problem:malformed' })
    }
    for (const host of ['tasks_1.example:80', '[::1]', 'localhost:'])
      expect((await ask('/', { Host: host })).status).toBe(200)
  })

  test('is anything where tokens, or TASKER_OPEN, say who may come', async () => {
    const { ask } = await setup()
    expect((await ask('/', { Host: 'tasks.example' })).status).toBe(200)
  })
})

describe('browsers', () => {
  const origin = { Origin: 'https://a.example' }
  const preflight = { ...origin, 'Access-Control-Request-Method': 'POST' }

  test('pages of other origins have no leave', async () => {
    const { ask } = await setup()
    const response = await ask('/', origin)
    expect([...response.headers.keys()].filter((name) => name.startsWith('access-control'))).toEqual([])
    expect((await ask('/', preflight, 'OPTIONS')).status).toBe(405)
  })

  test('those of a named origin have, and can read errors too', async () => {
    const { ask } = await setup({ corsOrigins: ['https://a.example', 'https://b.example'] })
    const allowed = (response: Response) => response.headers.get('Access-Control-Allow-Origin')
    expect(allowed(await ask('/', origin))).toBe('https://a.example')
    expect(allowed(await ask('/nope', origin))).toBe('https://a.example')
    expect(allowed(await ask('/', { Origin: 'https://evil.example' }))).toBeNull()
    const leave = await ask('/secured', preflight, 'OPTIONS')
    expect(leave.status).toBe(204)
    expect(leave.headers.get('Access-Control-Allow-Headers')).toContain('Authorization')
    const every = await setup({ corsOrigins: ['*'] })
    expect(allowed(await every.ask('/', origin))).toBe('*')
  })

  /** Sends a request that changes something, as a page of `Origin`, or as nobody knows who. */
  const change = async (doors: Partial<Doors>, headers: Record<string, string>, method = 'POST') => {
    const { app } = await setup(doors)
    for (const name of ['post', 'delete', 'put', 'patch'] as const) app[name]('/change', (c) => c.text('changed'))
    return app.request('/change', { method, headers: { Host: 'localhost:5001', ...headers } })
  }

  test.each([
    ['this very service, as browsers say it', { 'Sec-Fetch-Site': 'same-origin', Origin: 'http://localhost:5001' }],
    ['nobody: someone typed it', { 'Sec-Fetch-Site': 'none' }],
    ['a program, which says nothing of pages', {}],
    ['this very service, as older browsers say it', { Origin: 'http://localhost:5001' }],
    ['one that is named', { 'Sec-Fetch-Site': 'cross-site', Origin: 'https://a.example' }],
    ['one that is named, in an older browser', { Origin: 'https://a.example' }],
    ['a name of this service, behind a proxy', { Origin: 'https://tasks.example' }],
    [
      'anywhere, with a bearer token',
      { 'Sec-Fetch-Site': 'cross-site', Origin: 'https://evil.example', Authorization: 'Bearer x' },
    ],
  ] as [string, Record<string, string>][])('may change something from %s', async (_, headers) => {
    const doors = { corsOrigins: ['https://a.example'], hosts: ['tasks.example'] }
    for (const method of ['POST', 'DELETE', 'PUT', 'PATCH'])
      expect((await change(doors, headers, method)).status).toBe(200)
  })

  test.each([
    ['another site', { 'Sec-Fetch-Site': 'cross-site', Origin: 'https://evil.example' }],
    ['another site, without an origin', { 'Sec-Fetch-Site': 'cross-site' }],
    ['another port of this machine', { 'Sec-Fetch-Site': 'same-site', Origin: 'http://localhost:3000' }],
    ['a site that says anything else', { 'Sec-Fetch-Site': 'same-origin, cross-site' }],
    ['a site that says it twice', { 'Sec-Fetch-Site': 'none, none' }],
    ['another site that claims our origin', { 'Sec-Fetch-Site': 'cross-site', Origin: 'http://localhost:5001' }],
    ['another site, in an older browser', { Origin: 'https://evil.example' }],
    ['another port of this machine, in an older browser', { Origin: 'http://localhost:3000' }],
    ['another port of a name of this service', { Origin: 'https://tasks.example:8443' }],
    ['a page without an origin of its own', { Origin: 'null' }],
    ['two origins', { Origin: 'http://localhost:5001, https://evil.example' }],
    ['an origin that only begins like ours', { Origin: 'http://localhost:5001.evil.example' }],
    ['an origin with more than a host', { Origin: 'http://localhost:5001@evil.example' }],
    ['a page, with another scheme than bearer', { 'Sec-Fetch-Site': 'cross-site', Authorization: 'Basic eDp5' }],
    ['a page, without a Host', { Origin: 'http://localhost:5001', Host: '' }],
  ] as [string, Record<string, string>][])('may not change anything from %s', async (_, headers) => {
    const doors = { corsOrigins: ['https://a.example'], hosts: ['tasks.example'] }
    for (const method of ['POST', 'DELETE', 'PUT', 'PATCH']) {
      const refused = await change('Host' in headers ? { corsOrigins: [] } : doors, headers, method)
      expect(refused.status).toBe(403)
      expect(await refused.json()).toMatchObject({ type: 'urn:tasker:problem:cross-site' })
    }
  })

  test('may read from anywhere: the browser keeps the answer from the page', async () => {
    const { ask } = await setup()
    for (const method of ['GET', 'HEAD']) {
      expect((await ask('/', { 'Sec-Fetch-Site': 'cross-site', Origin: 'https://evil.example' }, method)).status).toBe(
        200,
      )
    }
  })

  test('any page may change something where every origin may', async () => {
    expect((await change({ corsOrigins: ['*'] }, { 'Sec-Fetch-Site': 'cross-site', Origin: 'null' })).status).toBe(200)
  })

  test('every answer, errors too, is not kept, framed or taken for another type', async () => {
    const { ask } = await setup({ limiter: once() })
    const answers = [
      await ask('/'),
      await ask('/healthz'),
      await ask('/nope'),
      await ask('/', {}, 'PUT'),
      await ask('/fails'),
      await ask('/secured'),
      await ask('/', { from: 'a' }),
      await ask('/', { from: 'a' }),
    ]
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 404, 405, 500, 401, 200, 429])
    for (const { headers } of answers) {
      expect(headers.get('Cache-Control')).toBe('no-store')
      expect(headers.get('X-Content-Type-Options')).toBe('nosniff')
      expect(headers.get('X-Frame-Options')).toBe('DENY')
      expect(headers.get('Content-Security-Policy')).toBe("default-src 'none'; frame-ancestors 'none'")
      expect(headers.get('Referrer-Policy')).toBe('no-referrer')
    }
    expect((await ask('/kept')).headers.get('Cache-Control')).toBe('max-age=60')
  })
})
