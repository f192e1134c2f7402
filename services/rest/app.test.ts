import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import { startRedis } from '#shared/test/redis-server.ts'
import { MAX_BODY } from './app.ts'
import { MAX_COMMANDS } from './command.ts'
import { startEndpoint, TOKEN } from './endpoint.ts'

let endpoint: Awaited<ReturnType<typeof startEndpoint>>
beforeAll(async () => {
  endpoint = await startEndpoint()
})
afterAll(() => endpoint.stop())

const base64 = (text: string) => Buffer.from(text).toString('base64')
const sha1 = (text: string) => createHash('sha1').update(text).digest('hex')

describe('who is let in', () => {
  test('a bearer token or _token opens every path but /healthz, which is open', async () => {
    const ask = (path: string, headers: Record<string, string> = {}) => fetch(endpoint.url + path, { headers })
    expect((await ask('/healthz')).status).toBe(200)
    expect((await ask('/ping', { Authorization: `Bearer ${TOKEN}` })).status).toBe(200)
    expect(await (await ask(`/echo/hi?_token=${TOKEN}`)).json()).toEqual({ result: 'hi' })
    for (const path of ['/ping', '/metrics', '/subscribe/ch', '/nothing', `/ping?_token=${TOKEN}x`]) {
      const answer = await ask(path)
      expect(answer.status).toBe(401)
      expect(answer.headers.get('WWW-Authenticate')).toBe('Bearer')
      expect(await answer.json()).toEqual({ error: 'WRONGPASS invalid or missing auth token' })
    }
    expect((await ask(`/ping?_token=${TOKEN}`, { Authorization: 'Bearer other' })).status).toBe(401)
  })
})

describe('commands', () => {
  test('go as a JSON array, numbers as they are written', async () => {
    const key = endpoint.key('number')
    expect(await endpoint.post('/', `["set", "${key}", 12345678901234567890]`)).toMatchObject({ status: 200 })
    expect((await endpoint.post('/', ['GET', key])).json).toEqual({ result: '12345678901234567890' })
    await endpoint.post('/', ['SET', key, true])
    expect(await endpoint.tcp.get(key)).toBe('true')
  })

  test('go as a path: its segments, then the body, then the query', async () => {
    const key = endpoint.key('a/b c')
    const path = encodeURIComponent(key)
    expect((await endpoint.request(`/set/${path}/v%201?EX=100&NX`)).json).toEqual({ result: 'OK' })
    expect((await endpoint.request(`/ttl/${path}`)).json).toEqual({ result: 100 })
    expect((await endpoint.request(`/get/${path}`)).json).toEqual({ result: 'v 1' })
    const put = { method: 'PUT', body: new Uint8Array([0, 255, 10]) }
    expect((await endpoint.request(`/set/${path}?EX=50`, put)).json).toEqual({ result: 'OK' })
    expect(await endpoint.tcp.getBuffer(key)).toEqual(Buffer.from([0, 255, 10]))
    expect((await endpoint.request(`/set/${path}/%ff%00`, { method: 'POST' })).json).toEqual({ result: 'OK' })
    expect(await endpoint.tcp.getBuffer(key)).toEqual(Buffer.from([255, 0]))
    expect(await endpoint.request(`/get/${path}`, { method: 'HEAD' })).toMatchObject({ status: 200, text: '' })
    expect(await endpoint.request('/get/%zz')).toMatchObject({ status: 400 })
  })

  test('are answered with what Redis replies, in the shapes of RESP2', async () => {
    const [hash, set] = [endpoint.key('hash'), endpoint.key('zset')]
    await endpoint.tcp.hset(hash, { a: '1', b: '' })
    await endpoint.tcp.zadd(set, 1.5, 'x')
    await endpoint.tcp.set(endpoint.key('big'), '9007199254740992')
    const answers = await endpoint.post('/pipeline', [
      ['HGETALL', hash],
      ['hgetall', hash],
      ['ZRANGE', set, 0, -1, 'WITHSCORES'],
      ['ZSCORE', set, 'x'],
      ['GET', endpoint.key('none')],
      ['LRANGE', endpoint.key('none'), 0, -1],
      ['SISMEMBER', endpoint.key('none'), 'x'],
      ['TYPE', hash],
      ['INCR', endpoint.key('big')],
      ['EVAL', "return {1, false, {'x', {ok = 'FINE'}, {err = 'ERR deep'}}}", 0],
    ])
    expect(answers.text).toBe(
      '[{"result":["a","1","b",""]},{"result":["a","1","b",""]},{"result":["x","1.5"]},{"result":"1.5"},{"result":null},{"result":[]},' +
        '{"result":0},{"result":"hash"},{"result":9007199254740993},{"result":[1,null,["x","FINE","ERR deep"]]}]',
    )
  })

  test('that fail are a 400 with the words of Redis', async () => {
    const key = endpoint.key('text')
    await endpoint.tcp.set(key, 'x')
    const cases: [unknown, string][] = [
      [['INCR', key], 'ERR value is not an integer or out of range'],
      [['GET'], "ERR wrong number of arguments for 'get' command"],
      [['LPUSH', key, 1], 'WRONGTYPE Operation against a key holding the wrong kind of value'],
      [['EVALSHA', 'f'.repeat(40), 0], 'NOSCRIPT No matching script. Please use EVAL.'],
      [['EVALSHA_RO', 'f'.repeat(40), 0], 'NOSCRIPT No matching script. Please use EVAL.'],
      [['EVAL', 'return 1'], "ERR wrong number of arguments for 'eval' command"],
    ]
    for (const [command, error] of cases) {
      expect(await endpoint.post('/', command)).toMatchObject({ status: 400, json: { error } })
    }
    expect((await endpoint.post('/', ['NOSUCH'])).text).toStartWith('{"error":"ERR unknown command \'NOSUCH\'')
  })

  test('that are none are a 400, other methods a 405, other paths a 404', async () => {
    for (const body of ['', '{', '{}', '[]', '"GET"', '[["GET","a"]]', '["GET",null]', '["GET",{}]']) {
      expect((await endpoint.post('/', body)).status).toBe(400)
    }
    for (const path of ['/pipeline', '/multi-exec']) {
      for (const body of ['', '[]', '["GET","a"]', '[[]]']) expect((await endpoint.post(path, body)).status).toBe(400)
      expect(await endpoint.request(path)).toMatchObject({ status: 405 })
      expect(await endpoint.post(`${path}/more`, [['PING']])).toMatchObject({ status: 404 })
    }
    const removed = await endpoint.request('/get/a', { method: 'DELETE' })
    expect(removed.status).toBe(405)
    expect(removed.headers.get('Allow')).toBe('GET, HEAD, POST, PUT')
    expect((await endpoint.request('/')).status).toBe(405)
  })

  test('have limits: 10 MB a request, and a number of commands', async () => {
    const key = endpoint.key('large')
    expect((await endpoint.post('/', ['SET', key, 'x'.repeat(MAX_BODY)])).status).toBe(413)
    expect((await endpoint.post('/', ['SET', key, 'x'.repeat(MAX_BODY - 200)])).json).toEqual({ result: 'OK' })
    expect(await endpoint.tcp.strlen(key)).toBe(MAX_BODY - 200)
    await endpoint.tcp.del(key)
    const many = (count: number) => Array.from({ length: count }, () => ['PING'])
    expect((await endpoint.post('/pipeline', many(MAX_COMMANDS + 1))).status).toBe(400)
    expect((await endpoint.post('/pipeline', many(MAX_COMMANDS))).billed).toBe(MAX_COMMANDS)
  })

  test('that wait, belong to a connection or administer the server are refused, and never reach Redis', async () => {
    const refused =
      'BLPOP a 0,BRPOP a 0,BLMOVE a b LEFT LEFT 0,BLMPOP 0 1 a LEFT,BZPOPMIN a 0,BZPOPMAX a 0,BZMPOP 0 1 a MIN,WAIT 1 0,WAITAOF 1 0 0,' +
      'xread block 0 streams a $,XREADGROUP GROUP g c COUNT 1 BLOCK 0 STREAMS a >,SELECT 1,AUTH x,HELLO 3,CLIENT ID,RESET,QUIT,' +
      'MULTI,EXEC,DISCARD,WATCH a,SUBSCRIBE a,PSUBSCRIBE a,MONITOR,CONFIG GET *,SHUTDOWN,DEBUG SLEEP 0,SAVE,BGSAVE,BGREWRITEAOF,' +
      'REPLICAOF NO ONE,SLAVEOF NO ONE,FAILOVER,CLUSTER INFO,ACL WHOAMI,MODULE LIST,MIGRATE a,SWAPDB 0 1,SLOWLOG GET,LATENCY DOCTOR,' +
      'MEMORY DOCTOR,PSYNC a 1,SYNC,SCRIPT KILL,SCRIPT DEBUG YES,FUNCTION KILL'
    const commands = refused.split(',').map((command) => command.split(' '))
    const answers = await endpoint.post('/pipeline', commands)
    expect(answers.billed).toBe(0)
    for (const { error } of answers.json as { error: string }[])
      expect(error).toStartWith('ERR Command is not available:')
    expect((await endpoint.request('/blpop/a/0')).status).toBe(400)
    // A key may be called like the option that is refused.
    expect((await endpoint.post('/', ['XREAD', 'STREAMS', endpoint.key('BLOCK'), '0'])).json).toEqual({ result: null })
    expect((await endpoint.post('/', ['XREAD', 'STREAMS', 'BLOCK', '0'])).status).toBe(200)
  })

  test('are answered with a sync token that changes', async () => {
    const [one, two] = [await endpoint.post('/', ['PING']), await endpoint.post('/pipeline', [['PING']])]
    expect(one.headers.get('upstash-sync-token')).toBeTruthy()
    expect(two.headers.get('upstash-sync-token')).not.toBe(one.headers.get('upstash-sync-token'))
  })

  test('when Redis is away are a 503, and are answered again when it is back', async () => {
    const redis = await startRedis()
    const alone = await startEndpoint(redis.url)
    const command = ['SET', 'k', 'v']
    try {
      expect((await alone.post('/', command)).status).toBe(200)
      await redis.kill()
      for (const path of ['/pipeline', '/multi-exec']) expect((await alone.post(path, [command])).status).toBe(503)
      expect((await alone.post('/', command)).status).toBe(503)
      const back = await startRedis({ port: redis.port })
      try {
        let status = 503
        const deadline = Date.now() + 10_000
        while (status === 503 && Date.now() < deadline) status = (await alone.post('/', command)).status
        expect(status).toBe(200)
      } finally {
        await back.stop()
      }
    } finally {
      await alone.stop()
      await redis.stop()
    }
  })
})

describe('encodings', () => {
  test('base64 encodes every string, at any depth, and leaves the status OK, numbers and null', async () => {
    const key = endpoint.key('encoded')
    const commands = [
      ['SET', key, 'ü'],
      ['GET', key],
      ['PING'],
      ['EVAL', "return {'OK', 1, false, {'OK', {'x'}}}", 0],
      ['GET', endpoint.key('none')],
      ['INCR', key],
    ]
    const answers = await endpoint.post('/pipeline', commands, { 'Upstash-Encoding': 'base64' })
    expect(answers.json).toEqual([
      { result: 'OK' },
      { result: base64('ü') },
      { result: base64('PONG') },
      { result: [base64('OK'), 1, null, [base64('OK'), [base64('x')]]] },
      { result: null },
      { error: 'ERR value is not an integer or out of range' },
    ])
  })

  test('resp2 is what Redis would send', async () => {
    const ask = async (command: unknown) =>
      (await endpoint.post('/', command, { 'Upstash-Response-Format': 'resp2' })).text
    expect(await ask(['PING'])).toBe('+PONG\r\n')
    expect(await ask(['EVAL', "return {1, 'two', false, {}}", 0])).toBe('*4\r\n:1\r\n$3\r\ntwo\r\n$-1\r\n*0\r\n')
    expect(await ask(['GET'])).toBe("-ERR wrong number of arguments for 'get' command\r\n")
  })
})

describe('several commands', () => {
  test('in a pipeline are answered one by one, and a failure stops none', async () => {
    const key = endpoint.key('pipeline')
    const commands = [
      ['SET', key, 'x'],
      ['INCR', key],
      ['BLPOP', key, 0],
      ['EVAL', 'return redis.call("get", KEYS[1])', 1, key],
      ['DEL', key],
    ]
    const { status, json } = await endpoint.post('/pipeline', commands)
    expect(status).toBe(200)
    expect(json).toMatchObject([
      { result: 'OK' },
      { error: 'ERR value is not an integer or out of range' },
      { error: expect.stringContaining('BLPOP') },
      { result: 'x' },
      { result: 1 },
    ])
  })

  test('in a transaction run together, and a command that fails when it runs stops none', async () => {
    const key = endpoint.key('transaction')
    const { json } = await endpoint.post('/multi-exec', [
      ['SET', key, 'x'],
      ['INCR', key],
      ['GET', key],
    ])
    expect(json).toEqual([{ result: 'OK' }, { error: 'ERR value is not an integer or out of range' }, { result: 'x' }])
  })

  test('in a transaction that is discarded are a 400, and none has run', async () => {
    const key = endpoint.key('discarded')
    for (const bad of [['NOSUCH'], ['GET'], ['BLPOP', key, 0], ['EVAL', 'return 1']]) {
      const answer = await endpoint.post('/multi-exec', [['SET', key, 'x'], bad])
      expect(answer.status).toBe(400)
      expect(answer.text).toStartWith('{"error":"EXECABORT Transaction discarded because of')
    }
    expect(await endpoint.tcp.exists(key)).toBe(0)
  })

  test('in transactions of many requests at once never mix', async () => {
    const key = endpoint.key('mixed')
    const transaction = () =>
      endpoint.post('/multi-exec', [
        ['INCR', key],
        ['EVAL', 'return redis.call("incr", KEYS[1])', 1, key],
        ['INCR', key],
      ])
    const answers = await Promise.all(Array.from({ length: 30 }, transaction))
    for (const { json } of answers) {
      const [first, second, third] = (json as { result: number }[]).map(({ result }) => result)
      expect([second, third]).toEqual([Number(first) + 1, Number(first) + 2])
    }
  })
})

describe('scripts for Upstash', () => {
  const shebang = '#!lua flags=allow-key-locking\n'

  test('are known by the hash of the text that the caller sent', async () => {
    const text = `${shebang}return {KEYS[1], '${endpoint.key('')}'}`
    const expected = { result: ['k', endpoint.key('')] }
    expect((await endpoint.post('/', ['EVALSHA', sha1(text), 1, 'k'])).text).toStartWith('{"error":"NOSCRIPT')
    expect((await endpoint.post('/', ['EVAL', text, 1, 'k'])).json).toEqual(expected)
    expect((await endpoint.post('/', ['EVALSHA', sha1(text), 1, 'k'])).json).toEqual(expected)
    expect((await endpoint.post('/', ['EVALSHA_RO', sha1(text).toUpperCase(), 1, 'k'])).json).toEqual(expected)
    expect((await endpoint.post('/multi-exec', [['EVALSHA', sha1(text), 1, 'k']])).json).toEqual([expected])
  })

  test('are loaded under it too', async () => {
    const text = `${shebang}return '${endpoint.key('loaded')}'`
    expect((await endpoint.post('/', ['SCRIPT', 'EXISTS', sha1(text)])).json).toEqual({ result: [0] })
    expect((await endpoint.post('/', ['SCRIPT', 'LOAD', text])).json).toEqual({ result: sha1(text) })
    expect((await endpoint.post('/', ['script', 'exists', sha1(text), 'f'.repeat(40)])).json).toEqual({
      result: [1, 0],
    })
    expect((await endpoint.post('/', ['EVALSHA', sha1(text), 0])).json).toEqual({ result: endpoint.key('loaded') })
  })

  test('that fail name their own hash, and the line that the caller knows', async () => {
    const text = `${shebang}local x = 1\nreturn redis.call('incr', KEYS[1], x)`
    const { status, text: answer } = await endpoint.post('/', ['EVAL', text, 1, 'k'])
    expect(status).toBe(400)
    expect(answer).toContain(`script: ${sha1(text)}, on @user_script:3.`)
  })

  test('keep the flags that Redis knows', async () => {
    const text = '#!lua flags=allow-key-locking,no-writes\nreturn redis.call("set", KEYS[1], 1)'
    expect((await endpoint.post('/', ['EVAL', text, 1, endpoint.key('x')])).text).toContain(
      'Write commands are not allowed',
    )
  })
})

describe("Upstash's own client", () => {
  test('reads back what it wrote, of every type', async () => {
    const redis = endpoint.sdk()
    const key = endpoint.key('sdk')
    const value = { text: 'ü\u0000🙂', list: [1, { two: 'OK' }], nothing: null }
    expect(await redis.set(key, value)).toBe('OK')
    expect(await redis.get<typeof value>(key)).toEqual(value)
    await redis.hset(`${key}:hash`, { a: 1, b: 'OK' })
    expect(await redis.hgetall(`${key}:hash`)).toEqual({ a: 1, b: 'OK' })
    await redis.zadd(`${key}:zset`, { score: 1.5, member: 'm' })
    expect(await redis.zrange(`${key}:zset`, 0, -1, { withScores: true })).toEqual(['m', 1.5])
    expect(await redis.mget(key, `${key}:none`)).toEqual([value, null])
  })

  test('runs pipelines, transactions and scripts', async () => {
    const redis = endpoint.sdk({ automaticDeserialization: false, enableAutoPipelining: false })
    const key = endpoint.key('sdk2')
    expect(await redis.pipeline().set(key, '1').incr(key).get(key).exec()).toEqual(['OK', 2, '2'])
    expect(await redis.multi().incr(key).get(key).exec()).toEqual([3, '3'])
    const script = redis.createScript<string[]>(
      `#!lua flags=allow-key-locking\nreturn {redis.call('GET', KEYS[1]), ARGV[1]}`,
    )
    expect(await script.exec([key], ['OK'])).toEqual(['3', 'OK'])
    expect(await script.evalsha([key], ['x'])).toEqual(['3', 'x'])
    await expect(redis.evalsha('f'.repeat(40), [], [])).rejects.toThrow('NOSCRIPT')
    await expect(endpoint.sdk({ token: 'wrong' }).get(key)).rejects.toThrow('WRONGPASS')
  })
})
