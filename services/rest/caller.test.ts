import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { connect } from 'node:net'
import { Redis } from 'ioredis'
import { createAuth } from '#shared/http/auth.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { freePort } from '#shared/test/process.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import { createApp } from './app.ts'
import { startRest } from './main.ts'

const TOKEN = 'hush-hush-token'
const lines: string[] = []
const log = createLogger('debug', (line) => lines.push(line))
afterEach(() => {
  lines.length = 0
})

async function endpoint(redisUrl: string, options: { scriptTimeoutMs?: number } = {}) {
  const config = { redisUrl, host: '127.0.0.1', port: 0, token: TOKEN, logLevel: 'silent' } as const
  const server = await startRest(config, log, options)
  const post = async (command: unknown, path = '/') => {
    const headers = { Authorization: `Bearer ${TOKEN}` }
    const response = await fetch(server.url + path, { method: 'POST', headers, body: JSON.stringify(command) })
    return (await response.json()) as { result?: unknown; error?: string }
  }
  return { url: server.url, port: Number(new URL(server.url).port), post, [Symbol.asyncDispose]: () => server.stop() }
}

let redis: RedisServer
let admin: Redis
beforeAll(async () => {
  redis = await startRedis({ args: ['--busy-reply-threshold', '50'] })
  admin = new Redis(redis.url)
})
afterAll(async () => {
  admin.disconnect()
  await redis.stop()
})

describe('what is refused to a request', () => {
  const calls = [
    "'SELECT', 1",
    "'SWAPDB', 0, 1",
    "'MIGRATE', 'elsewhere', 6379, 'k', 0, 10",
    "'REPLICAOF', 'elsewhere', 6379",
    "'SLOWLOG', 'GET'",
    "'CONFIG', 'GET', '*'",
    "'MEMORY', 'DOCTOR'",
    "'CLIENT', 'LIST'",
    "'ACL', 'LIST'",
  ]

  test.each(calls)('is refused to its script, and to a function, too: %s', async (call) => {
    await using rest = await endpoint(redis.url)
    const refused = /can't run this command|not allowed from script/
    expect((await rest.post(['EVAL', `return redis.call(${call})`, 0])).error).toMatch(refused)
    const pipeline = (await rest.post([['EVAL', `return redis.call(${call})`, 0]], '/pipeline')) as { error: string }[]
    expect(pipeline[0]?.error).toMatch(refused)
    const library = `#!lua name=lib\nredis.register_function('f', function() return redis.call(${call}) end)`
    expect(await rest.post(['FUNCTION', 'LOAD', 'REPLACE', library])).toEqual({ result: 'lib' })
    expect((await rest.post(['FCALL', 'f', 0])).error).toMatch(refused)
    expect(await rest.post(['EVAL', "redis.call('SET', 'k', 1) return redis.call('GET', 'k')", 0])).toEqual({
      result: '1',
    })
  })

  test('is so again after Redis was started anew, and has forgotten its users', async () => {
    const first = await startRedis()
    await using rest = await endpoint(first.url)
    const outside = ['EVAL', "return redis.call('SELECT', 1)", 0]
    expect((await rest.post(outside)).error).toContain("can't run this command")
    await first.kill()
    const second = await startRedis({ port: first.port })
    let answer = await rest.post(['PING'])
    while (answer.error) answer = await rest.post(['PING'])
    expect((await rest.post(outside)).error).toContain("can't run this command")
    await second.stop()
    await first.stop()
  })

  test('is what the user of the URL may not do, where it may make no others, and the log says so', async () => {
    await admin.call('ACL', 'SETUSER', 'plain', 'reset', 'on', '>pw', '~*', '&*', '+@all', '-@admin', '-swapdb')
    await using rest = await endpoint(redis.url.replace('//', '//plain:pw@'))
    expect(lines.join()).toContain('CALLERS MAY DO WHATEVER THE USER IN REDIS_URL MAY')
    expect((await rest.post(['EVAL', "return redis.call('SWAPDB', 0, 1)", 0])).error).toContain(
      "can't run this command",
    )
    expect(await rest.post(['PING'])).toEqual({ result: 'PONG' })
    expect(lines.join()).not.toContain('pw')
  })

  test('two endpoints with one token share their user, and others have their own', async () => {
    await using one = await endpoint(redis.url)
    await using two = await endpoint(redis.url)
    expect(await one.post(['PING'])).toEqual({ result: 'PONG' })
    expect(await two.post(['PING'])).toEqual({ result: 'PONG' })
    const users = ((await admin.call('ACL', 'USERS')) as string[]).filter((name) => name.startsWith('tasker-rest-'))
    expect(users).toHaveLength(1)
  })
})

describe('a script that does not end', () => {
  test.each([
    ['alone', '/', ['EVAL', 'while true do end', 0]],
    ['in a transaction', '/multi-exec', [['EVAL', 'while true do end', 0]]],
    ['in a function', '/', ['FCALL', 'forever', 0]],
  ] as const)('%s is stopped, and others go on', async (_, path, command) => {
    await using rest = await endpoint(redis.url, { scriptTimeoutMs: 200 })
    const library = "#!lua name=forever\nredis.register_function('forever', function() while true do end end)"
    await rest.post(['FUNCTION', 'LOAD', 'REPLACE', library])
    const [stopped] = [await rest.post(command, path)].flat()
    expect(stopped?.error).toMatch(/killed by user/)
    expect(await rest.post(['PING'])).toEqual({ result: 'PONG' })
    expect(lines.join()).toContain('A script that did not end was stopped.')
  })

  test('and has written cannot be stopped, and the log says what is left to do', async () => {
    const lost = await startRedis({ args: ['--busy-reply-threshold', '50'] })
    const said = Promise.withResolvers<void>()
    const own = createLogger('debug', (line) => line.includes('SHUTDOWN NOSAVE') && said.resolve())
    const config = { redisUrl: lost.url, host: '127.0.0.1', port: 0, token: TOKEN, logLevel: 'silent' } as const
    const server = await startRest(config, own, { scriptTimeoutMs: 200 })
    const body = JSON.stringify(['EVAL', "redis.call('SET', 'k', 1) while true do end", 0])
    const asked = fetch(server.url, { method: 'POST', headers: { Authorization: `Bearer ${TOKEN}` }, body })
    await said.promise
    await lost.stop()
    expect((await asked).status).toBe(503)
    await server.stop()
  })
})

describe('the token in a query', () => {
  test('reaches neither Redis nor its errors, however its name is written', async () => {
    await using rest = await endpoint(redis.url)
    for (const name of ['_token', '%5ftoken', '%5Ftok%65n', '_t%6Fken']) {
      const answer = await (await fetch(`${rest.url}/nosuch/a?${name}=${TOKEN}&b`)).json()
      expect(JSON.stringify(answer)).toContain('unknown command')
      expect(JSON.stringify(answer)).not.toContain(TOKEN)
    }
  })

  test('is in no log, whatever goes wrong', async () => {
    const auth = await createAuth([{ token: TOKEN, scopes: [] }])
    if (auth === null) throw new Error('no token')
    const fails = (url: string) => Promise.reject(new TypeError(`"${url}" cannot be parsed as a URL.`))
    for (const name of ['_token', '%5Ftoken']) {
      const target = `/get/x?a=1&${name}=${TOKEN}&b=2`
      const streams = { open: () => fails(target), size: 0 }
      const app = createApp({ connection: { send: () => fails(target), close() {} }, streams, auth, log })
      expect((await app.request(target)).status).toBe(500)
    }
    expect(lines.join()).toContain('A request failed.')
    expect(lines.join()).not.toContain(TOKEN)
  })

  test('is in no log of a request without a Host, or with one that is none', async () => {
    await using rest = await endpoint(redis.url)
    const ask = (head: string) =>
      new Promise<string>((resolve) => {
        let answer = ''
        const socket = connect(rest.port, '127.0.0.1', () =>
          socket.write(`GET /echo/hi?_token=${TOKEN} ${head}\r\n\r\n`),
        )
        socket.on('data', (data) => {
          answer += data
        })
        socket.on('close', () => resolve(answer))
      })
    expect(await ask('HTTP/1.0')).toEndWith('{"result":"hi"}')
    for (const host of ['a b', 'x/y', 'a\r\nHost: b'])
      expect(await ask(`HTTP/1.1\r\nConnection: close\r\nHost: ${host}`)).toContain(' 400 ')
    expect(lines.join()).not.toContain(TOKEN)
  })
})

test('a Redis that is away at first is joined when it comes', async () => {
  const port = await freePort()
  await using rest = await endpoint(`redis://127.0.0.1:${port}`)
  expect((await rest.post(['PING'])).error).toContain('Redis does not answer')
  const late = await startRedis({ port })
  let answer = await rest.post(['PING'])
  while (answer.error) answer = await rest.post(['PING'])
  expect((await rest.post(['EVAL', "return redis.call('SELECT', 1)", 0])).error).toContain("can't run this command")
  await late.stop()
})
