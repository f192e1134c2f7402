import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { connect, type Socket } from 'node:net'
import { endProcesses, startProcess, type TestProcess } from '#shared/test/process.ts'
import { runtimes, type TestRuntime } from '#shared/test/runtimes.ts'

const SERVER = Bun.fileURLToPath(new URL('../test/http-server.ts', import.meta.url))
const servers = new Map<string, { process: TestProcess; port: number }>()

async function start({ command }: TestRuntime, env: Record<string, string> = {}) {
  const process = startProcess([...(command ?? []), SERVER], env)
  await process.prints('Listening on')
  return { process, port: Number(/:(\d+)\.\n/.exec(process.output())?.[1]) }
}

const present = runtimes.filter(({ command }) => command !== null)
beforeAll(async () => {
  await Promise.all(present.map(async (runtime) => servers.set(runtime.name, await start(runtime))))
}, 30_000)
afterAll(endProcesses)

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

/** A connection that is left open, once the text is sent. */
function held(port: number, text: string): Promise<Socket> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(text, () => resolve(socket)))
    socket.on('error', () => {})
  })
}

const long = 'x'.repeat(20_000)
const JSON_HEAD = 'HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'

for (const runtime of runtimes) {
  describe.skipIf(runtime.command === null)(`on ${runtime.name}${runtime.command ? '' : runtime.missing}`, () => {
    const port = () => servers.get(runtime.name)?.port ?? 0

    test.each([
      ['a URL', `GET /${long} HTTP/1.1\r\nHost: x\r\n\r\n`],
      ['a header', `GET / HTTP/1.1\r\nHost: x\r\nX-Long: ${long}\r\n\r\n`],
      ['a list of headers', `GET / HTTP/1.1\r\nHost: x\r\n${'a: b\r\n'.repeat(300)}\r\n`],
    ])('%s that is too long ends the connection with 431', async (_, request) => {
      expect(await raw(port(), request)).toStartWith('HTTP/1.1 431 ')
    })

    test('headers within the limits are taken', async () => {
      const request = `GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: ${long.slice(0, 14_000)}\r\n`
      expect(await raw(port(), `${request}${'a: b\r\n'.repeat(190)}\r\n`)).toStartWith('HTTP/1.1 200 ')
    })

    test.each([
      ['nonsense', '\0\u0001nonsense\r\n\r\n'],
      [
        'two lengths',
        'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n',
      ],
      ['HTTP/1.1 without a host', 'GET /healthz HTTP/1.1\r\n\r\n'],
    ])('%s instead of a request ends the connection with 400', async (_, request) => {
      expect(await raw(port(), request)).toStartWith('HTTP/1.1 400 ')
    })

    test('a request of HTTP/1.0, which needs no host, reaches its path', async () => {
      expect(await raw(port(), 'GET /healthz HTTP/1.0\r\nConnection: close\r\n\r\n')).toMatch(/^HTTP\/1\.. 200 /)
      expect(await raw(port(), 'GET /abc/healthz HTTP/1.0\r\nConnection: close\r\n\r\n')).toMatch(/^HTTP\/1\.. 404 /)
    })

    test('a request of HTTP/1.0 without a Host has its own path and query', async () => {
      const ask = async (target: string) => {
        const answer = await raw(port(), `GET ${target} HTTP/1.0\r\nConnection: close\r\n\r\n`)
        return JSON.parse(answer.split('\r\n\r\n')[1] ?? '')
      }
      expect(await ask('/healthz')).toEqual({ status: 'alive' })
      expect(await ask('//abc/healthz?x=1')).toMatchObject({ status: 404, instance: '/.//abc/healthz' })
      expect(await ask('/query?a=1&b=2')).toEqual({ a: '1', b: '2' })
    })

    test('two Host headers, and one that is no host, are a 400', async () => {
      const two = ['localhost\r\nHost: evil.example', 'localhost\r\nHost: localhost']
      for (const host of [...two, 'a b', 'localhost@evil', 'localhost/x?y', 'localhost, evil.example']) {
        const answer = await raw(port(), `GET /healthz HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)
        expect([host, answer.split('\r\n')[0]]).toEqual([host, 'HTTP/1.1 400 Bad Request'])
      }
    })

    test('HEAD has the Content-Length of GET, and no body', async () => {
      const ask = (method: string, path: string) =>
        raw(port(), `${method} ${path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: r\r\nConnection: close\r\n\r\n`)
      const lengthIn = (answer: string) => /^content-length: (\d+)\r$/im.exec(answer)?.[1]
      for (const path of ['/', '/healthz', '/nowhere']) {
        const [get, head] = [await ask('GET', path), await ask('HEAD', path)]
        // What has no length comes in chunks, which end with the body.
        const length = lengthIn(get) ?? String(/\r\n\r\n[\da-f]+\r\n(.*)\r\n0\r\n\r\n$/.exec(get)?.[1]?.length)
        expect(Number(length)).toBeGreaterThan(0)
        expect(lengthIn(head)).toBe(length)
        expect(head).toEndWith('\r\n\r\n')
      }
    })

    test('a body that comes byte by byte is a 408, and ends the connection', async () => {
      const head = `POST /echo ${JSON_HEAD}`
      const known = await raw(port(), `${head}Content-Length: 100000\r\n\r\n{`, 20)
      expect(known).toStartWith('HTTP/1.1 408 ')
      expect(known).toContain('The body did not arrive within 0.2 s.')
      const chunked = await raw(port(), `${head}Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n`)
      expect(chunked).toStartWith('HTTP/1.1 408 ')
    })

    test('a body over the limit is a 413, whether it says so or not', async () => {
      const large = JSON.stringify('x'.repeat(1024 * 1024))
      const headers = { 'Content-Type': 'application/json' }
      const url = `http://127.0.0.1:${port()}/echo`
      for (const body of [large, new Blob([large]).stream()]) {
        expect((await fetch(url, { method: 'POST', headers, body })).status).toBe(413)
      }
    })

    test('a request is one to the middleware of Hono that makes another one of it', async () => {
      const url = `http://127.0.0.1:${port()}/limited`
      const post = (text: string) => fetch(url, { method: 'POST', body: new Blob([text]).stream() })
      expect(await (await post('short')).text()).toBe('short')
      expect((await post('much too long')).status).toBe(413)
    })

    test('the answer to HEAD is that to GET without its body', async () => {
      const answer = await raw(port(), 'HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
      expect(answer).toMatch(/^HTTP\/1\.1 200 /)
      expect(answer).toMatch(/content-type: application\/json/i)
      expect(answer).toEndWith('\r\n\r\n')
    })

    test('the address of a request is that of its connection', async () => {
      const response = await fetch(`http://127.0.0.1:${port()}/address`)
      expect(await response.text()).toBe('127.0.0.1')
      // A caller without an address is not limited.
      expect(response.headers.has('RateLimit')).toBe(true)
    })

    test('a caller who goes away aborts the request', async () => {
      const { process } = await start(runtime)
      const [, listening = ''] = /:(\d+)\.\n/.exec(process.output()) ?? []
      const socket = await held(Number(listening), 'GET /until-gone HTTP/1.1\r\nHost: x\r\n\r\n')
      await process.prints('Asked.')
      socket.destroy()
      await process.prints('Gone.')
      process.kill('SIGKILL')
    })

    test('an error that nobody caught shows nothing of itself', async () => {
      for (const path of ['/bug', '/outside']) {
        const response = await fetch(`http://127.0.0.1:${port()}${path}`)
        expect([path, response.status]).toEqual([path, 500])
        expect(await response.text()).not.toContain('private')
      }
    })

    test('a stop answers what is under way, and does not wait for idle connections', async () => {
      const { process, port } = await start(runtime)
      const idle = await held(port, 'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
      await new Promise((resolve) => idle.once('data', resolve))
      await held(port, '')
      const asked = fetch(`http://127.0.0.1:${port}/until-stop`)
      await process.prints('Asked.')
      process.kill('SIGTERM')
      expect(await (await asked).text()).toBe('answered')
      expect(await process.ended).toBe(0)
      expect(process.output()).toEndWith('Stopped.\n')
    })

    test('a stop waits only so long for a body that never comes', async () => {
      const { process, port } = await start(runtime, { STOP_MS: '300' })
      await held(port, `POST /patient ${JSON_HEAD}Content-Length: 50\r\n\r\n{`)
      await process.prints('Asked.')
      process.kill('SIGTERM')
      expect(await process.ended).toBe(0)
      expect(process.output()).toEndWith('Stopped.\n')
    })

    test('a port that is in use is an error that says so', async () => {
      const second = startProcess([...(runtime.command ?? []), SERVER], { PORT: String(port()) })
      expect(await second.ended).toBe(1)
      expect(second.output().trim().split('\n')).toEqual([expect.stringContaining('in use')])
    })
  })
}

test('on every runtime, headers that do not come end the connection, and an answer may take longer', async () => {
  const head = 'GET / HTTP/1.1\r\nHost: x\r\nX-Slow: '
  const found = await Promise.all(
    [...servers].map(async ([name, { port }]) => {
      const answer = fetch(`http://127.0.0.1:${port}/quiet`).then((response) => response.text())
      const closed = await Promise.all([raw(port, head), raw(port, head, 500), raw(port, '')])
      return { name, closed, answer: await answer }
    }),
  )
  const expected: (typeof found)[number] = { name: '', closed: ['', '', ''], answer: 'answered' }
  expect(found).toEqual(found.map(({ name }) => ({ ...expected, name })))
}, 40_000)
