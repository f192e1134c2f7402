import { afterEach, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import { createLogger } from '#shared/runtime/log.ts'
import { endProcesses, freePort, startProcess } from '#shared/test/process.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { startRestEndpoint } from '#shared/test/rest-endpoint.ts'
import type { Broker } from '../broker.ts'
import { openBroker } from '../open.ts'
import { conditionsOf } from './condition.ts'
import { placeOf, reasonOf } from './trouble.ts'

const PASSWORD = 'hush-4711'
const cleanups: (() => unknown)[] = []
afterEach(async () => {
  await endProcesses()
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

async function start(args: readonly string[] = []) {
  const server = await startRedis({ args })
  const redis = new Redis(server.url)
  cleanups.push(
    () => server.stop(),
    () => redis.disconnect(),
  )
  return { ...server, redis, host: `127.0.0.1:${server.port}` }
}

/**
 * Opens a store as a process does when it starts; gives the lines that it logs, and waits until one of them has a text.
 */
async function open(url: string, { waitReplicas = 0, token = 'none', partitions = url.includes(',') ? 4 : 1 } = {}) {
  const lines: string[] = []
  const waiting = new Set<() => void>()
  const log = createLogger('info', (line) => {
    lines.push(line)
    for (const look of waiting) look()
  })
  const store = url.startsWith('http')
    ? ({ type: 'upstash', url, token } as const)
    : ({ type: 'redis', url, waitReplicas } as const)
  const broker: Broker = await openBroker(store, { partitions, log })
  cleanups.push(() => broker.close())
  const says = (text: string) =>
    new Promise<string>((resolve) => {
      const look = () => {
        const line = lines.find((one) => one.includes(text))
        if (line !== undefined) resolve(line)
      }
      waiting.add(look)
      look()
    })
  return { broker, lines, says }
}

/** What a start says of a Redis that it cannot use, and what a call says. */
async function complaintsOf(url: string, options?: { token?: string }): Promise<string[]> {
  const { broker, lines, says } = await open(url, options)
  const line = await says('The store cannot be used yet; trying on.')
  const error = await broker.ping().catch((reason: unknown) => reason)
  expect(lines).toHaveLength(1)
  return [line, String(error)]
}

test('a port where nothing listens is named, and what to do', async () => {
  const port = await freePort()
  for (const text of await complaintsOf(`redis://user:${PASSWORD}@127.0.0.1:${port}`)) {
    expect(text).toContain(`127.0.0.1:${port}`)
    expect(text).toContain('nothing listens there: start Redis, or correct REDIS_URL')
    expect(text).not.toContain(PASSWORD)
  }
})

test('a host that nobody knows is named', async () => {
  for (const text of await complaintsOf(`redis://:${PASSWORD}@no-such-host.invalid:6379`)) {
    expect(text).toContain('no-such-host.invalid:6379')
    expect(text).toContain('that host is not known: correct REDIS_URL')
    expect(text).not.toContain(PASSWORD)
  }
}, 30_000)

test('a missing and a wrong password are told apart, and neither password is told', async () => {
  const { redis, host } = await start()
  await redis.config('SET', 'requirepass', PASSWORD)
  for (const text of await complaintsOf(`redis://${host}`)) {
    expect(text).toContain(host)
    expect(text).toContain('it asks for a password: set REDIS_URL to redis://:PASSWORD@HOST:PORT')
  }
  for (const text of await complaintsOf(`redis://:wrong-4711@${host}`)) {
    expect(text).toContain('it refuses the user or the password: correct them in REDIS_URL')
    expect(text).not.toContain('4711')
  }
})

test('a database that is not there is named, and no other is used instead', async () => {
  const { redis, host } = await start()
  for (const text of await complaintsOf(`redis://${host}/99`)) {
    expect(text).toContain(`${host}/99`)
    expect(text).toContain('it has no database of that number')
  }
  const { broker } = await open(`redis://${host}/99`)
  const task = { id: 'a', kind: 'sum', priority: 'normal', envelope: '{"task_id":"a","payload":{}}' } as const
  await expect(broker.enqueue([task])).rejects.toThrow('no database of that number')
  expect(await redis.dbsize()).toBe(0)
}, 30_000)

test('a Cluster of which no node answers, and one that is none, are told apart', async () => {
  const { host } = await start()
  const [one, other] = [await freePort(), await freePort()]
  for (const text of await complaintsOf(
    `redis://:${PASSWORD}@127.0.0.1:${one},redis://:${PASSWORD}@127.0.0.1:${other}`,
  )) {
    expect(text).toContain(`127.0.0.1:${one}, 127.0.0.1:${other}`)
    expect(text).toContain('no node answers')
    expect(text).not.toContain(PASSWORD)
  }
  for (const text of await complaintsOf(`redis://${host},redis://${host}`)) expect(text).toContain('it is no Cluster')
}, 30_000)

test('over REST a wrong address, something else that answers there, and a wrong token are told apart', async () => {
  const port = await freePort()
  for (const text of await complaintsOf(`http://127.0.0.1:${port}`, { token: PASSWORD })) {
    expect(text).toContain(`127.0.0.1:${port}`)
    expect(text).toContain('nothing listens there: correct UPSTASH_REDIS_REST_URL')
    expect(text).not.toContain(PASSWORD)
  }
  const page = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response('<html>', { status: 404 }) })
  cleanups.push(() => page.stop(true))
  for (const text of await complaintsOf(`http://127.0.0.1:${page.port}`))
    expect(text).toContain('what answers there is not Redis over REST: correct UPSTASH_REDIS_REST_URL')
  const endpoint = await startRestEndpoint()
  cleanups.push(() => endpoint.stop())
  for (const text of await complaintsOf(endpoint.url, { token: PASSWORD })) {
    expect(text).toContain('it does not accept the token: set UPSTASH_REDIS_REST_TOKEN')
    expect(text).not.toContain(PASSWORD)
  }
}, 30_000)

test('a process that starts before Redis does says so on one line, and goes on by itself', async () => {
  const port = await freePort()
  const tasker = startProcess('services/dev.ts', {
    ...{ REDIS_URL: `redis://127.0.0.1:${port}`, CREATOR_PORT: '0', MANAGER_PORT: '0', LOG_LEVEL: 'info' },
    TASKER_SECRET: Buffer.alloc(32, 1).toString('base64'),
  })
  await tasker.prints('The store cannot be used yet; trying on.')
  expect(tasker.output()).toContain(`127.0.0.1:${port}`)
  const server = await startRedis({ port, args: ['--appendonly', 'yes'] })
  cleanups.push(() => server.stop())
  await tasker.prints('"The store answers."')
  expect(tasker.output().match(/The store cannot be used yet/g)).toHaveLength(1)
}, 30_000)

test('a Redis that may evict, or keeps no journal, is a line each with what to set', async () => {
  const { url, host } = await start(['--maxmemory-policy', 'allkeys-lru'])
  const { lines, says } = await open(url)
  await says('The store answers.')
  const warnings = lines.slice(1).map((line) => JSON.parse(line) as Record<string, unknown>)
  expect(warnings).toMatchObject([
    { level: 'WARN', redis: host, policy: 'allkeys-lru' },
    { level: 'WARN', redis: host, appendonly: 'no' },
  ])
  expect(warnings.map(({ message }) => message)).toEqual([
    'Redis may evict tasks and results when it is full: set maxmemory-policy noeviction.',
    'Redis keeps no journal and loses tasks when it restarts: set appendonly yes.',
  ])
})

test('a Redis that is set up well is told nothing of, nor one that does not tell, but that it does not', async () => {
  const { url, redis, host } = await start(['--appendonly', 'yes'])
  const well = await open(url)
  await well.says('The store answers.')
  expect(well.lines).toHaveLength(1)
  await redis.call('ACL', 'SETUSER', 'quiet', 'on', `>${PASSWORD}`, '~*', '&*', '+@all', '-info')
  const quiet = await open(`redis://quiet:${PASSWORD}@${host}`)
  await quiet.says('could not be checked')
  expect(quiet.lines).toHaveLength(2)
  expect(quiet.lines.join()).not.toContain(PASSWORD)
})

test('more replicas than are waited for is a line, where a fail-over may choose one of them', async () => {
  const primary = await start(['--appendonly', 'yes', '--repl-diskless-sync-delay', '0'])
  await start(['--replicaof', '127.0.0.1', `${primary.port}`])
  while (!(await primary.redis.info('replication')).includes('state=online')) await Bun.sleep(5)
  const options = { redis: primary.host, waitReplicas: 0 }
  const info = await primary.redis.info()
  expect(conditionsOf(info, { ...options, failsOver: false })).toEqual([])
  expect(conditionsOf(info, { ...options, failsOver: true, waitReplicas: 1 })).toEqual([])
  expect(conditionsOf(info, { ...options, failsOver: true })).toMatchObject([
    { level: 'warn', fields: { replicas: 1, TASKER_WAIT_REPLICAS: 0 } },
  ])
})

test.each([
  ['6.2.14', 1],
  ['7.0.0', 0],
  ['7.2.4', 0],
  ['8.2.1', 0],
])('Redis %s: %i complaints about its age', (version, complaints) => {
  const info = `# Server\r\nredis_version:${version}\r\n`
  const told = conditionsOf(info, { redis: 'here:6379', waitReplicas: 0, failsOver: false })
  expect(told.filter(({ level }) => level === 'error')).toHaveLength(complaints)
  // A provider that resembles an old one is not judged by that.
  expect(conditionsOf(`${info}upstash_version:1.12\r\n`, { redis: '', waitReplicas: 0, failsOver: false })).toEqual([])
})

test('what a Redis 6 says to a claim is told as its age', () => {
  const text = 'ERR user_script:212: Unknown Redis command called from script script: 5a6b, on @user_script:212.'
  expect(reasonOf(new Error(text))).toBe('it is too old: Tasker needs Redis 7.0 or newer')
})

test.each([
  ['redis://:a,b@c@one:1/3?x=y', 'one:1/3'],
  ['rediss://user:p%40ss@one', 'one:6379'],
  ['redis://u:p@one:1,redis://u:p@two:2', 'one:1, two:2'],
  ['redis://one:1, two:2', 'one:1, two:2'],
  ['redis+sentinel://u:p@one:1,two:2/name', '"name" of the sentinels one:1, two:2'],
])('%s leads to %s', (url, place) => {
  expect(placeOf(url)).toBe(place)
})

test('a process with another number of partitions than the store is refused every call, and says so when it starts', async () => {
  const { url, redis } = await start()
  const task = (id: string) => ({ id, kind: 'sum', priority: 'normal', envelope: '{}' }) as const
  const one = await open(url, { partitions: 4 })
  expect(await one.broker.enqueue([task('a')])).toEqual([{ id: 'a', created: true }])
  expect(await redis.get('tasks:partitions')).toBe('4')

  const other = await open(url, { partitions: 8 })
  const message =
    'The store has 4 partitions, and this process has 8: set TASKER_PARTITIONS to 4, as in all other processes.'
  expect(await other.says('The store cannot be used yet')).toContain(message)
  const claim = { kinds: ['sum'], limit: 1, leaseMs: 1_000, takeBack: true }
  for (const call of [
    () => other.broker.enqueue([task('b')]),
    () => other.broker.claim(claim),
    () => other.broker.get(['a']),
    () => other.broker.stats(['sum']),
    () => other.broker.kinds(['sum']),
    () => other.broker.ping(),
  ]) {
    const error = await call().catch((reason: unknown) => reason)
    expect(error).toMatchObject({ name: 'StoreUnavailable', refused: true, message })
  }
  const alone = await open(url)
  await expect(alone.broker.enqueue([task('c')])).rejects.toThrow('this process has 1: set TASKER_PARTITIONS to 4')
  expect((await one.broker.stats(['sum']))[0]?.queued).toBe(1)
})

test('a store of before takes the number of the first process, also when it is full, and none asks twice', async () => {
  const { url, redis } = await start()
  await redis.lpush('sum_task_queue', '{"task_id":"a","payload":{}}')
  await redis.config('SET', 'maxmemory', '1')
  const one = await open(url)
  await one.says('The store answers.')
  expect(await redis.get('tasks:partitions')).toBe('1')
  const calls = async () => Number(/cmdstat_get:calls=(\d+)/.exec(await redis.info('commandstats'))?.[1])
  const before = await calls()
  await Promise.all([one.broker.kinds([]), one.broker.get(['a']), one.broker.stats(['sum'])])
  expect(await calls()).toBe(before)
})

test('over REST the number of partitions is asked for where there are several', async () => {
  const { url, redis } = await start()
  const endpoint = await startRestEndpoint(url)
  cleanups.push(() => endpoint.stop())
  const alone = await open(endpoint.url, { token: endpoint.token })
  await alone.broker.kinds([])
  expect(await redis.exists('tasks:partitions')).toBe(0)
  const several = await open(endpoint.url, { token: endpoint.token, partitions: 2 })
  await several.broker.kinds([])
  expect(await redis.get('tasks:partitions')).toBe('2')
})
