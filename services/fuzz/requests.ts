/** What is asked of the doors: requests to each of the services, and bytes that are none. */
import { connect } from 'node:net'
import fc from 'fast-check'
import { contracts } from '../workers/contracts.ts'
import { bytesOf, fieldsText, jsonText, oddText } from './arbitrary.ts'

/** A request. */
export interface Asked {
  method: string
  path: string
  headers: Record<string, string>
  body: Uint8Array | null
}

/** Asks, and reads the whole answer; a stream of events only until it is open. Rejects when there is no answer in time. */
export async function ask(
  { method, path, headers, body }: Asked,
  options: { fetch: (request: Request) => Response | Promise<Response>; url: string; timeoutMs: number },
): Promise<{ status: number; headers: Headers; text: string }> {
  // With other methods, fetch sends none.
  const hasBody = ['POST', 'PUT', 'PATCH', 'DELETE'].includes(method) && body !== null
  const late = new AbortController()
  const request = new Request(options.url + path, {
    ...{ method, headers, signal: late.signal },
    ...(hasBody ? { body: new Blob([body as Uint8Array<ArrayBuffer>]).stream() } : {}),
  })
  const answer = async () => {
    const response = await options.fetch(request)
    const isStream = response.headers.get('Content-Type') === 'text/event-stream'
    if (isStream) await response.body?.cancel()
    return { status: response.status, headers: response.headers, text: isStream ? '' : await response.text() }
  }
  const tooLate = Promise.withResolvers<never>()
  const timer = setTimeout(() => {
    tooLate.reject(new Error(`No answer in ${options.timeoutMs} ms.`))
    late.abort()
  }, options.timeoutMs)
  return Promise.race([answer(), tooLate.promise]).finally(() => clearTimeout(timer))
}

/** Sends bytes that may be no request, and gives what came back until the connection was closed. Rejects when that takes too long. */
export function sendBytes(
  bytes: Uint8Array,
  { port, timeoutMs }: { port: number; timeoutMs: number },
): Promise<string> {
  return new Promise((resolve, reject) => {
    let received = ''
    const socket = connect(port, '127.0.0.1', () => socket.end(bytes))
    const timer = setTimeout(() => {
      reject(new Error(`Not closed in ${timeoutMs} ms.`))
      socket.destroy()
    }, timeoutMs)
    socket.on('data', (data) => {
      received += data
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      clearTimeout(timer)
      resolve(received)
    })
  })
}

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
    '{"topic":"\\ud800","n":2,"api_key":"sk-xyz"}',
    '{"question":"\\u0000","api_key":"\\udfff-secret"}',
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
const cursor = fc
  .oneof(
    jsonText,
    fc
      .dictionary(
        fc.constantFrom('sum:queued', 'sum:succeeded', 'chat:waiting', '__proto__'),
        fc.array(fc.constantFrom(0, 1, 200, Number.MAX_SAFE_INTEGER), { maxLength: 4 }),
      )
      .map((places) => JSON.stringify(places)),
  )
  .map((json) => Buffer.from(json).toString('base64url'))
const query = fc
  .array(
    fc.tuple(
      fc.constantFrom('wait', 'kind', 'status', 'parent', 'limit', 'cursor', '__proto__'),
      fc.oneof(id, cursor, fc.constantFrom('60', '1', '200', ...KINDS, 'queued', 'failed')),
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

const JSON_TYPE = { 'Content-Type': 'application/json' }
const FITTING: Record<string, string> = {
  sum: '{"num1":-0,"num2":1e308}',
  sequence: '{"n":3}',
  chat: '{"question":"\\ud800","api_key":"\\u0000-secret"}',
  conversation: '{"topic":"\\udfff","n":1,"api_key":"\\udfff-secret"}',
}
const mostlyJson = headers.chain((given) => fc.constantFrom(given, { ...JSON_TYPE, ...given }))

/** To creator and manager. */
export const serviceRequest: fc.Arbitrary<Asked> = fc.oneof(
  fc.record({ method, path, headers: mostlyJson, body: fc.option(body, { freq: 8 }) }),
  fc.record({ method, path, headers: fc.constant(JSON_TYPE), body }),
  fc.record({
    method: fc.constant('POST'),
    path: fc.constantFrom(...KINDS).map((kind) => `/${kind}`),
    headers: mostlyJson,
    body: fc.constantFrom(...KINDS).map((kind) => new TextEncoder().encode(FITTING[kind])),
  }),
  fc.record({
    method: fc.constantFrom('GET', 'POST', 'POST'),
    path: fc.constantFrom('/task/known', '/task/known/cancel', '/task/known/retry', '/tasks', '/stats'),
    headers: fc.constant({}),
    body: fc.constant(null),
  }),
)

/** Bodies of creations. */
export const creationBody = body

/** To what needs a token, which most of them have. */
const withToken = (token: string, given: fc.Arbitrary<Record<string, string>>) =>
  fc
    .tuple(
      given,
      fc.oneof(
        { weight: 4, arbitrary: fc.constant(`Bearer ${token}`) },
        headerValue,
        fc.constantFrom('Bearer', `bearer  ${token} `),
      ),
    )
    .map(([others, Authorization]) => ({ ...others, Authorization }))

/** To services and workers on the edge. */
export const edgeRequest = (token: string): fc.Arbitrary<Asked> =>
  fc.oneof(
    fc.record({
      method,
      path: fc.constantFrom('/drain', '/drain', '/drain', '/drain/', '/drain?x', '//drain', '/DRAIN'),
      headers: withToken(
        token,
        fc.oneof(mostlyJson, fc.constantFrom({ Prefer: 'respond-async' }, { Prefer: 'wait=0, respond-async' })),
      ),
      body: fc.option(body, { freq: 2 }),
    }),
    serviceRequest.chain((asked) =>
      withToken(token, fc.constant(asked.headers)).map((given) => ({ ...asked, headers: given })),
    ),
  )

const COMMANDS = (
  'GET SET DEL INCR MGET HSET HGETALL LPUSH LRANGE LMPOP ZADD ZRANGE XADD XREAD SCAN OBJECT TYPE EXPIRE PING ECHO PUBLISH EVAL EVALSHA EVAL_RO ' +
  'SCRIPT FUNCTION FCALL MEMORY COMMAND INFO FLUSHDB BLPOP MULTI EXEC SELECT SUBSCRIBE CLIENT CONFIG MONITOR QUIT RESET SHUTDOWN get __proto__'
).split(' ')
const argument = fc.oneof(
  oddText,
  fc.constantFrom(
    'k',
    'l',
    '0',
    '-1',
    '1',
    '100',
    'NX',
    'EX',
    'MATCH',
    'STREAMS',
    'BLOCK',
    'LOAD',
    'EXISTS',
    'f'.repeat(40),
  ),
  fc.constantFrom(
    'return 1',
    'return KEYS[1]',
    'error(nil)',
    '#!lua flags=allow-key-locking\nreturn {1, {}}',
    '#!lua flags=',
  ),
)
const command = fc
  .tuple(
    fc.oneof({ weight: 5, arbitrary: fc.constantFrom(...COMMANDS) }, oddText).map((name) => JSON.stringify(name)),
    fc.array(fc.oneof({ weight: 5, arbitrary: argument.map((text) => JSON.stringify(text)) }, jsonText), {
      maxLength: 5,
    }),
  )
  .map((words) => `[${words.flat().join()}]`)
const commands = fc
  .array(fc.oneof({ weight: 8, arbitrary: command }, jsonText), { maxLength: 5 })
  .map((all) => `[${all.join()}]`)
const segments = fc
  .array(fc.oneof({ weight: 4, arbitrary: argument.map((text) => encodeURIComponent(text.toWellFormed())) }, inPath), {
    maxLength: 4,
  })
  .map((all) => all.map((one) => `/${one}`).join(''))

/** To the REST endpoint. */
export const restRequest = (token: string): fc.Arbitrary<Asked> =>
  fc.record({
    method: fc.oneof({ weight: 4, arbitrary: fc.constant('POST') }, method),
    path: fc
      .tuple(
        fc.oneof(
          { weight: 4, arbitrary: fc.constantFrom('/', '/pipeline', '/multi-exec') },
          {
            weight: 4,
            arbitrary: fc.tuple(fc.constantFrom(...COMMANDS), segments).map(([name, rest]) => `/${name}${rest}`),
          },
          {
            weight: 1,
            arbitrary: fc.tuple(fc.constantFrom('/subscribe', '/psubscribe'), segments).map((both) => both.join('')),
          },
          fc.constantFrom('/metrics', '/healthz', '/metrics/x', '/pipeline/x'),
          path,
        ),
        fc.constantFrom('', '', '?EX=1&NX', '?_token', `?_token=${token}`, '?&&=&%zz', '?a=%ff+%00'),
      )
      .map((both) => both.join('')),
    headers: withToken(
      token,
      fc.dictionary(
        fc.constantFrom('Upstash-Encoding', 'Upstash-Response-Format', 'Content-Type', 'Accept'),
        fc.oneof(fc.constantFrom('base64', 'resp2', 'text/event-stream'), headerValue),
      ),
    ),
    body: fc.option(bytesOf(fc.oneof(command, commands, jsonText)), { freq: 8 }),
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

/** Bytes to a server's socket. */
export const rawRequest: fc.Arbitrary<Uint8Array> = fc
  .tuple(start, fc.array(line, { maxLength: 5 }), body)
  .map(([first, lines, bytes]) =>
    Buffer.concat([Buffer.from(`${[first, ...lines].join('\r\n')}\r\n\r\n`), bytes.subarray(0, 100_000)]),
  )
