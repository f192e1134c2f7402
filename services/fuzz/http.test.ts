/** Every endpoint of creator and manager answers whatever comes: below 500, in the form of the interface, at once. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { connect } from 'node:net'
import fc from 'fast-check'
import type { Broker } from '#shared/broker/broker.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger, type Log } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { type Server, serve } from '#shared/runtime/serve.ts'
import { stores } from '#shared/test/stores.ts'
import { createApp as createCreator } from '../creator/app.ts'
import { createApp as createManager } from '../manager/app.ts'
import { contracts } from '../workers/contracts.ts'
import { bounded, bytesOf, fieldsText, jsonText, oddText, TIMEOUT_MS } from './arbitrary.ts'

const KINDS = Object.keys(contracts)
const FIELDS = [
  'num1',
  'num2',
  'n',
  'topic',
  'question',
  'api_key',
  'model',
  'payload',
  'options',
  '__proto__',
  'constructor',
]
const OPTIONS = ['priority', 'delay_ms', 'run_at', 'timeout_ms', 'max_attempts', 'retention_s', '__proto__']

const payload = fc.oneof(
  fc.constantFrom(
    '{"num1":1,"num2":2}',
    '{"num1":-0,"num2":1e308}',
    '{"n":3}',
    '{"topic":"\\ud800","n":2,"api_key":"sk-x"}',
    '{"question":"\\u0000","api_key":"\\udfff"}',
  ),
  fieldsText(FIELDS),
  jsonText,
)
const option = fc.oneof(
  jsonText,
  fc.constantFrom('"high"', '0', '1', '8.64e15', '86400000', '"2026-01-01T00:00:00Z"', '"+275760-09-13T00:00:00Z"'),
)
const body = bytesOf(
  fc.oneof(
    payload,
    fc.tuple(payload, fieldsText(OPTIONS, option)).map(([one, options]) => `{"payload":${one},"options":${options}}`),
    fc.array(payload, { maxLength: 5 }).map((payloads) => `{"payloads":[${payloads.join()}]}`),
  ),
)

const id = fc.oneof(oddText, fc.constantFrom('known', 'known.0', 'known.1'))
const inPath = fc.oneof(
  id.map((text) => encodeURIComponent(text.toWellFormed())),
  fc.constantFrom('%', '%ff', '%00', '%2e%2e', '%2F', '%ED%A0%80', 'a%', 'x'.repeat(8_000)),
)
const query = fc
  .array(
    fc.tuple(
      fc.constantFrom('wait', 'kind', 'status', 'parent', 'limit', 'cursor', '__proto__'),
      fc.oneof(id, fc.constantFrom('60', '1', '200', ...KINDS, 'queued', 'failed')),
    ),
    { maxLength: 4 },
  )
  .map((pairs) => pairs.map(([name, value]) => `${name}=${encodeURIComponent(value.toWellFormed())}`).join('&'))
const path = fc
  .tuple(
    fc.oneof(
      fc.constantFrom(
        '/',
        '/healthz',
        '/readyz',
        '/tasks',
        '/stats',
        ...KINDS.flatMap((kind) => [`/${kind}`, `/${kind}/batch`]),
      ),
      inPath.map((one) => `/task/${one}`),
      fc
        .tuple(inPath, fc.constantFrom('cancel', 'retry', 'events', ''))
        .map(([one, action]) => `/task/${one}/${action}`),
      inPath.map((one) => `/${one}`),
    ),
    query,
  )
  .map(([at, asked]) => (asked === '' ? at : `${at}?${asked}`))

/** Header values are bytes without line ends. */
const headerValue = oddText.map((text) =>
  Array.from(text, (char) => (/[^\x20-\x7e\x80-\xff]/.test(char) ? '?' : char))
    .join('')
    .slice(0, 2_000)
    .trim(),
)
const headers = fc.dictionary(
  fc.constantFrom(
    'Content-Type',
    'Content-Encoding',
    'Accept',
    'Authorization',
    'Idempotency-Key',
    'X-Request-Id',
    'traceparent',
    'Origin',
    'X-Forwarded-For',
    'Prefer',
  ),
  fc.oneof(
    headerValue,
    fc.constantFrom(
      'application/json',
      'text/plain',
      'gzip',
      'key',
      'Bearer x',
      '*/*;q=zzz',
      'application/json;charset=utf-16',
      ';;,,==',
    ),
  ),
  { maxKeys: 4 },
)
const method = fc.oneof(
  { weight: 3, arbitrary: fc.constant('POST') },
  { weight: 1, arbitrary: fc.constant('GET') },
  fc.constantFrom('DELETE', 'PUT', 'PATCH', 'HEAD', 'OPTIONS', 'PROPFIND', 'QUERY', 'get', 'X-ODD'),
)

const odd = fc.record({ method, path, headers, body: fc.option(body, { freq: 8 }), json: fc.boolean() })
const plain = fc.record({ method, path, headers: fc.constant({}), body, json: fc.constant(true) })
const FITTING: Record<string, string> = {
  sum: '{"num1":-0,"num2":1e308}',
  sequence: '{"n":3}',
  chat: '{"question":"\\ud800","api_key":"\\u0000"}',
  conversation: '{"topic":"\\udfff","n":1,"api_key":"x"}',
}
const fitting = fc.record({
  method: fc.constant('POST'),
  path: fc.constantFrom(...KINDS).map((kind) => `/${kind}`),
  headers,
  body: fc.constantFrom(...KINDS).map((kind) => new TextEncoder().encode(FITTING[kind])),
  json: fc.boolean(),
})
const request = fc.oneof(odd, plain, fitting)

async function open(store: (typeof stores)[number]) {
  const broker: Broker = store.open({ now: Date.now })
  const errors: string[] = []
  const log: Log = createLogger('error', (line) => errors.push(line))
  const keyring = await createKeyring([newKey()])
  // Time passes as soon as somebody waits for it.
  const clock = { now: Date.now, sleep: nextTurn }
  const creator = createCreator({ broker, contracts, keyring, managerUrl: 'http://manager', log, auth: null })
  const manager = createManager({ broker, contracts, log, auth: null, clock })
  const envelope = '{"task_id":"known","v":1,"kind":"sum","payload":{"num1":1,"num2":2}}'
  await broker.enqueue([{ id: 'known', kind: 'sum', priority: 'normal', envelope }])
  return { broker, errors, apps: { creator, manager } }
}

describe.each(stores)('on $name', (store) => {
  let scene: Awaited<ReturnType<typeof open>>
  beforeAll(async () => {
    scene = await open(store)
  })
  afterAll(() => scene.broker.close())

  test.each(['creator', 'manager'] as const)(
    '%s answers whatever is asked, and nothing is an error of its own',
    async (service) => {
      const seen = new Set<number>()
      await fc.assert(
        fc.asyncProperty(request, async ({ json, ...asked }) => {
          const hasBody = !['GET', 'HEAD', 'get'].includes(asked.method) && asked.body !== null
          const given: Record<string, string> = {
            ...(json ? { 'Content-Type': 'application/json' } : {}),
            ...asked.headers,
          }
          const init = {
            method: asked.method,
            headers: given,
            ...(hasBody ? { body: new Blob([asked.body as Uint8Array<ArrayBuffer>]).stream() } : {}),
          }
          const response = await scene.apps[service].request(new Request(`http://${service}${asked.path}`, init))
          const text = await response.text()
          expect(scene.errors).toEqual([])
          expect(response.status).toBeLessThan(500)
          seen.add(response.status)
          expect(response.headers.get('X-Content-Type-Options')).toBe('nosniff')
          if (response.status >= 400 && asked.method !== 'HEAD' && !given['Accept']) {
            expect(response.headers.get('Content-Type')).toBe('application/problem+json')
            expect(JSON.parse(text)).toMatchObject({ status: response.status, type: expect.any(String) })
          }
        }),
        bounded(4),
      )
      // Else it would say nothing.
      expect([...seen]).toEqual(
        expect.arrayContaining(service === 'creator' ? [201, 400, 404, 405, 415, 422] : [200, 404, 405, 409, 422]),
      )
    },
    TIMEOUT_MS,
  )

  test(
    'what was created can be read, listed, counted and deleted',
    async () => {
      await fc.assert(
        fc.asyncProperty(fc.constantFrom(...KINDS), body, async (kind, bytes) => {
          const { creator, manager } = scene.apps
          const init = {
            method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: bytes as Uint8Array<ArrayBuffer>,
          }
          const created = await creator.request(`/${kind}`, init)
          if (created.status !== 201) return expect([400, 422]).toContain(created.status)
          const { task_id } = (await created.json()) as { task_id: string }
          for (const [method, at] of [
            ['GET', `/task/${task_id}`],
            ['GET', `/tasks?kind=${kind}&limit=200`],
            ['GET', '/stats'],
            ['POST', `/task/${task_id}/cancel`],
            ['DELETE', `/task/${task_id}`],
          ] as const) {
            expect([at, (await manager.request(at, { method })).status]).toEqual([at, 200])
          }
        }),
        bounded(),
      )
    },
    TIMEOUT_MS,
  )
})

describe('over a socket', () => {
  let server: Server
  let scene: Awaited<ReturnType<typeof open>>
  beforeAll(async () => {
    scene = await open(stores[0] as (typeof stores)[number])
    server = serve({ fetch: scene.apps.creator.fetch, host: '127.0.0.1', port: 0 })
  })
  afterAll(async () => {
    await server.stop()
    await scene.broker.close()
  })

  const line = fc.oneof(
    oddText,
    fc.constantFrom(
      'Host: x',
      'Content-Length: 5',
      'Content-Length: -1',
      'Content-Length: 99999999999999999999',
      'Transfer-Encoding: chunked',
    ),
    fc.constantFrom(
      'Transfer-Encoding: gzip, chunked',
      'Content-Type: application/json',
      'Expect: 100-continue',
      'Upgrade: websocket',
      ': x',
      ' folded',
    ),
  )
  const start = fc.oneof(
    oddText,
    fc.constantFrom(
      'POST /sum HTTP/1.1',
      'GET / HTTP/1.1',
      'FOO / HTTP/1.1',
      'GET http://x/ HTTP/1.1',
      'GET * HTTP/1.1',
      'PRI * HTTP/2.0',
      'GET //x//../ HTTP/1.0',
    ),
  )

  test(
    'no bytes stop the server',
    async () => {
      const { port } = new URL(server.url)
      await fc.assert(
        fc.asyncProperty(start, fc.array(line, { maxLength: 5 }), body, async (first, lines, bytes) => {
          const answer = await new Promise<string>((resolve) => {
            let received = ''
            const socket = connect(Number(port), '127.0.0.1', () => {
              socket.write(
                Buffer.concat([Buffer.from(`${[first, ...lines].join('\r\n')}\r\n\r\n`), bytes.subarray(0, 100_000)]),
              )
              socket.end()
            })
            socket.on('data', (data) => {
              received += data
            })
            socket.on('error', () => {})
            socket.on('close', () => resolve(received))
          })
          // 505 is Bun's, for versions of HTTP that there are not.
          expect(answer).not.toMatch(/^HTTP\/1\.1 5(?!05)/)
          expect((await fetch(`${server.url}/healthz`)).status).toBe(200)
        }),
        bounded(),
      )
      expect(scene.errors).toEqual([])
    },
    TIMEOUT_MS,
  )
})
