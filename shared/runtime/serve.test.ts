import { afterEach, expect, test } from 'bun:test'
import { connect } from 'node:net'
import { createBase } from '#shared/http/base.ts'
import { createDoors } from '#shared/http/doors.ts'
import { readJson } from '#shared/http/json.ts'
import { silentLog } from './log.ts'
import { type Server, serve } from './serve.ts'

let server: Server | null = null
afterEach(async () => {
  await server?.stop()
  server = null
})

function start(): number {
  const app = createBase({
    ...{ service: 'test', about: {}, log: silentLog, unknownPath: 'Nothing here.', ready: async () => {} },
    doors: createDoors({
      ...{ open: false, hosts: null, trustedProxies: 0, corsOrigins: [], maxWaiters: 1 },
      rateLimit: { perSecond: 1, burst: 1_000 },
    }),
  })
  app.post('/echo', async (c) => c.json(await readJson(c, { deadlineMs: 200 })))
  server = serve({ fetch: app.fetch, host: '127.0.0.1', port: 0 })
  return Number(new URL(server.url).port)
}

/** What the server has sent when it closes the connection; `dripMs` after each other, more bytes follow the first. */
function raw(port: number, text: string, dripMs?: number): Promise<string> {
  return new Promise((resolve) => {
    let answer = ''
    const socket = connect(port, '127.0.0.1', () => socket.write(text))
    const drip = dripMs === undefined ? undefined : setInterval(() => socket.write(' '), dripMs)
    socket.on('data', (data) => {
      answer += data
    })
    // It may be closed in the middle of a write.
    socket.on('error', () => {})
    socket.on('close', () => {
      clearInterval(drip)
      resolve(answer)
    })
  })
}

const long = 'x'.repeat(20_000)

test.each([
  ['a URL', `GET /${long} HTTP/1.1\r\nHost: x\r\n\r\n`],
  ['a header', `GET / HTTP/1.1\r\nHost: x\r\nX-Long: ${long}\r\n\r\n`],
  ['a list of headers', `GET / HTTP/1.1\r\nHost: x\r\n${'a: b\r\n'.repeat(300)}\r\n`],
])('%s that is too long ends the connection with 431', async (_, request) => {
  expect(await raw(start(), request)).toStartWith('HTTP/1.1 431 ')
})

test.each([
  ['nonsense', '\0\u0001nonsense\r\n\r\n'],
  [
    'two lengths',
    'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n',
  ],
])('%s instead of a request ends the connection with 400', async (_, request) => {
  expect(await raw(start(), request)).toStartWith('HTTP/1.1 400 ')
})

test('a body that comes byte by byte is a 408, and ends the connection', async () => {
  const head = 'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
  const port = start()
  const known = await raw(port, `${head}Content-Length: 100000\r\n\r\n{`, 20)
  expect(known).toStartWith('HTTP/1.1 408 ')
  expect(known).toContain('The body did not arrive within 0.2 s.')
  const chunked = await raw(port, `${head}Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n`)
  expect(chunked).toStartWith('HTTP/1.1 408 ')
})

test('headers that do not come, or come byte by byte, end the connection', async () => {
  const port = start()
  const head = 'GET / HTTP/1.1\r\nHost: x\r\nX-Slow: '
  expect(await Promise.all([raw(port, head), raw(port, head, 500), raw(port, '')])).toEqual(['', '', ''])
}, 30_000)

test('the address of a request is that of its connection', async () => {
  const response = await fetch(`http://127.0.0.1:${start()}/`)
  expect(response.headers.get('RateLimit')).toBe('"default";r=999;t=0')
})
