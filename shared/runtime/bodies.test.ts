import { afterEach, describe, expect, test } from 'bun:test'
import { connect } from 'node:net'
import { createBase } from '#shared/http/base.ts'
import { MAX_BODIES, MAX_BODY } from '#shared/http/body.ts'
import { readJson } from '#shared/http/json.ts'
import { nextTurn } from './clock.ts'
import { silentLog } from './log.ts'
import { type Server, serve } from './serve.ts'

let server: Server | null = null
let reading = 0
const [arrived, late] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
afterEach(async () => {
  await server?.stop()
  server = null
  reading = 0
})

async function start(): Promise<number> {
  const app = createBase({
    ...{ service: 'test', about: {}, log: silentLog, unknownPath: 'Nothing here.', ready: async () => {} },
  })
  app.post('/echo', async (c) => c.json(await readJson(c, { deadlineMs: 200 })))
  app.post('/slow', async (c) => {
    reading++
    return c.json(await readJson(c))
  })
  app.get('/late', async (c) => {
    arrived.resolve()
    await late.promise
    return c.text('late')
  })
  server = await serve({ fetch: app.fetch, host: '127.0.0.1', port: 0 })
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

describe('bodies that do not arrive', () => {
  const head = (length: number) =>
    `POST /slow HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${length}\r\n\r\n`
  /**
   * Connections that have sent the head of a request; what they are answered, and when all that were refused are
   * closed.
   */
  function half(port: number, count: number, text: string) {
    let [connected, refused] = [0, 0]
    const answers: string[] = []
    const sockets = Array.from({ length: count }, () => {
      const socket = connect(port, '127.0.0.1', () => {
        connected++
        socket.write(text)
      })
      socket.on('data', (data) => answers.push(data.toString()))
      socket.on('error', () => {})
      socket.on('close', () => refused++)
      return socket
    })
    return {
      answers,
      connected: () => connected,
      refused: () => refused,
      close: () => sockets.forEach((socket) => void socket.destroy()),
    }
  }
  const until = async (condition: () => boolean) => {
    while (!condition()) await nextTurn()
  }

  test.each([
    ['that state their size', head(MAX_BODY)],
    [
      'that do not',
      `POST /slow HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nF0000\r\n${' '.repeat(0xf0000)}\r\n`,
    ],
  ])(
    'are bounded together: of those %s, more are a 503 that ends the connection, and small ones pass',
    async (_, text) => {
      const port = await start()
      const { answers, refused, close } = half(port, 60, text)
      const admitted = (0.75 * MAX_BODIES) / MAX_BODY
      // Of the chunked ones the last may be refused a little before.
      await until(() => refused() >= 60 - admitted - 2)
      expect(60 - refused()).toBeLessThanOrEqual(admitted + 2)
      for (const answer of answers) {
        expect(answer).toStartWith('HTTP/1.1 503 ')
        expect(answer).toContain('Retry-After: 1')
      }
      const small = await fetch(`http://127.0.0.1:${port}/echo`, { method: 'POST', body: '{"a":1}' })
      expect(await small.json()).toEqual({ a: 1 })
      close()
      // What is gone is not counted any more.
      await until(() => refused() === 60)
      let status = 0
      while (status !== 200) {
        const body = JSON.stringify('x'.repeat(900_000))
        status = (await fetch(`http://127.0.0.1:${port}/echo`, { method: 'POST', body })).status
      }
    },
  )

  test.each([
    ['a body that is read', head(100)],
    [
      'a body that nobody reads',
      `POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n${' '.repeat(800_000)}`,
    ],
    ['a head', 'POST /slow HTTP/1.1\r\nHost'],
  ])(
    'do not hold up a stop: %s',
    async (_, text) => {
      const port = await start()
      const { connected, answers, close } = half(port, 3, text)
      await until(() => connected() === 3)
      if (text.includes('/nowhere')) await until(() => answers.length === 3)
      if (text.includes('\r\n\r\n') && !text.includes('/nowhere')) await until(() => reading >= 3)
      // Else it takes the 30 s that a body has, or the 75 s of a connection.
      await server?.stop()
      close()
    },
    20_000,
  )

  test('are told that the service stops', async () => {
    const port = await start()
    const answer = raw(port, head(100))
    await until(() => reading === 1)
    await server?.stop()
    expect(await answer).toStartWith('HTTP/1.1 503 ')
    expect(await answer).toContain('urn:tasker:problem:stopping')
  })

  test('an answer under way is given before a stop ends', async () => {
    const port = await start()
    const answer = fetch(`http://127.0.0.1:${port}/late`)
    await arrived.promise
    const stopped = server?.stop()
    await nextTurn()
    late.resolve()
    expect(await (await answer).text()).toBe('late')
    await stopped
  })
})
