import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { startRedis } from '#shared/test/redis-server.ts'
import { startEndpoint } from './endpoint.ts'

let endpoint: Awaited<ReturnType<typeof startEndpoint>>
beforeAll(async () => {
  endpoint = await startEndpoint()
})
afterAll(() => endpoint.stop())

// Runs ARGV[1] commands.
const RUNS = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', KEYS[1], i) end return 'done'"

describe('the bill of a request', () => {
  test('has one for each command, however many at once, and none for what was refused', async () => {
    const key = endpoint.key('a')
    expect((await endpoint.post('/', ['SET', key, 1])).billed).toBe(1)
    expect((await endpoint.post('/', ['BLPOP', key, 0])).billed).toBe(0)
    expect(
      (
        await endpoint.post('/pipeline', [
          ['GET', key],
          ['LPUSH', key, 1],
          ['BLPOP', key, 0],
        ])
      ).billed,
    ).toBe(2)
    expect(
      (
        await endpoint.post('/multi-exec', [
          ['GET', key],
          ['PUBLISH', key, 1],
        ])
      ).billed,
    ).toBe(2)
    expect((await endpoint.request('/healthz')).billed).toBe(0)
  })

  test('has one for a script and one for each command that it ran', async () => {
    const key = endpoint.key('b')
    const run = (script: string, ...args: (string | number)[]) => endpoint.post('/', ['EVAL', script, 1, key, ...args])
    expect((await run(RUNS, 0)).billed).toBe(1)
    expect((await run(RUNS, 7)).billed).toBe(8)
    expect((await run("redis.call('INFO', 'stats') return redis.pcall('GET', KEYS[1])")).billed).toBe(3)
    // What ran before a script failed was run; a script that is not there ran nothing.
    const failed = await run("redis.call('SET', KEYS[1], 1) redis.call('LPUSH', KEYS[1], 1) redis.call('GET', KEYS[1])")
    expect(failed).toMatchObject({ status: 400, billed: 3 })
    expect((await endpoint.post('/', ['EVALSHA', 'f'.repeat(40), 1, key])).billed).toBe(1)
    const { json } = await endpoint.post('/', ['SCRIPT', 'LOAD', RUNS])
    expect((await endpoint.post('/', ['EVALSHA', (json as { result: string }).result, 1, key, 4])).billed).toBe(5)
  })

  test('has the commands of scripts in pipelines and transactions', async () => {
    const key = endpoint.key('c')
    const commands = [
      ['GET', key],
      ['EVAL', RUNS, 1, key, 3],
      ['OBJECT', 'ENCODING', key],
      ['EVAL', RUNS, 1, key, 2],
      ['SET', key, 1],
    ]
    expect((await endpoint.post('/pipeline', commands)).billed).toBe(10)
    expect((await endpoint.post('/multi-exec', commands)).billed).toBe(10)
  })

  test('is exact while others use the same Redis, over this endpoint and over TCP', async () => {
    const stop = new AbortController()
    const others = Array.from({ length: 3 }, async (_, index) => {
      while (!stop.signal.aborted) await endpoint.tcp.eval(RUNS, 1, endpoint.key(`other${index}`), 5)
    })
    const bills = await Promise.all(
      Array.from({ length: 200 }, async (_, count) => {
        const { billed } = await endpoint.post('/', ['EVAL', RUNS, 1, endpoint.key(`mine${count}`), count])
        return billed
      }),
    )
    stop.abort()
    await Promise.all(others)
    expect(bills).toEqual(Array.from({ length: 200 }, (_, count) => 1 + count))
  })
})

test('metrics have the sums of all bills, by command', async () => {
  const alone = await startEndpoint()
  try {
    const key = alone.key('d')
    await alone.post('/', ['EVAL', RUNS, 1, key, 5])
    await alone.request(`/get/${key}`)
    await alone.post('/', ['nosuch-"\n'])
    const { text } = await alone.request('/metrics')
    const samples = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'))
    expect(samples).toEqual([
      'rest_requests_total{status="200"} 2',
      'rest_requests_total{status="400"} 1',
      'rest_commands_total{command="eval"} 1',
      'rest_commands_total{command="get"} 1',
      'rest_commands_total{command="unknown"} 1',
      'rest_commands_total{command="inside_scripts"} 5',
      'rest_subscribers 0',
    ])
  } finally {
    await alone.stop()
  }
})

test('a Redis that has no memory left still runs scripts that only read, though their commands are not counted', async () => {
  const redis = await startRedis({ args: ['--maxmemory', '1'] })
  const full = await startEndpoint(redis.url)
  try {
    const read = ['EVAL', "return redis.call('EXISTS', KEYS[1])", 1, 'k']
    expect(await full.post('/', read)).toMatchObject({ json: { result: 0 }, billed: 1 })
    const write = ['EVAL', "return redis.call('SET', KEYS[1], 1)", 1, 'k']
    expect((await full.post('/', write)).text).toContain('OOM command not allowed')
  } finally {
    await full.stop()
    await redis.stop()
  }
})
