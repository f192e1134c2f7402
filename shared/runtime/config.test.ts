import { describe, expect, test } from 'bun:test'
import { ConfigError, loadConfig, managerUrlOf } from './config.ts'
import { newKey } from './seal.ts'

const problemsOf = (env: Record<string, string>): string => {
  try {
    loadConfig(env)
  } catch (error) {
    if (error instanceof ConfigError) return error.message
  }
  return ''
}

test('nothing set gives the defaults', () => {
  expect(loadConfig({})).toEqual({
    host: '127.0.0.1',
    creatorPort: 5000,
    managerPort: 5001,
    managerUrl: null,
    store: { type: 'sqlite', path: '.tasker/tasker.db' },
    partitions: 1,
    secret: { type: 'file', path: '.tasker/tasker.db.key' },
    tokens: [],
    doors: {
      ...{ open: false, hosts: [], rateLimit: null, trustedProxies: 0, corsOrigins: [] },
      maxWaiters: 1_000,
    },
    leaseMs: 30_000,
    workerConcurrency: null,
    workerKinds: null,
    workerPollMs: 1_000,
    workerSweepMs: 1_000,
    waitPollMs: 1_000,
    workerGraceMs: 10_000,
    workerHealthFile: null,
    drain: { token: null, maxMs: 25_000, maxTasks: 10_000, maxRequests: 45 },
    workerUrls: {},
    openai: { baseUrl: null, model: 'gpt-6-luna' },
    logLevel: 'info',
  })
})

test('an empty value counts as unset, whatever the setting', () => {
  const empty = { HOST: '', CREATOR_PORT: ' ', REDIS_URL: '', TASKER_SECRET: '', TASKER_TOKENS: '', LOG_LEVEL: '' }
  expect(loadConfig(empty)).toEqual(loadConfig({}))
})

test('what is set is read', () => {
  const config = loadConfig({
    HOST: '0.0.0.0',
    CREATOR_PORT: '80',
    MANAGER_URL: 'https://tasks.example/api/',
    TASKER_PARTITIONS: '8',
    TASKER_LEASE_MS: '5000',
    WORKER_CONCURRENCY: '3',
    WORKER_KINDS: 'sum, chat',
    WORKER_GRACE_MS: '0',
    OPENAI_BASE_URL: 'http://localhost:11434/v1',
    OPENAI_MODEL: 'llama',
    LOG_LEVEL: 'debug',
  })
  expect(config).toMatchObject({
    host: '0.0.0.0',
    creatorPort: 80,
    managerUrl: 'https://tasks.example/api',
    partitions: 8,
    leaseMs: 5000,
    workerConcurrency: 3,
    workerKinds: ['sum', 'chat'],
    workerGraceMs: 0,
    openai: { baseUrl: 'http://localhost:11434/v1', model: 'llama' },
    logLevel: 'debug',
  })
})

test('the address of the manager follows from host and port', () => {
  const of = (env: Record<string, string>) => managerUrlOf(loadConfig(env))
  expect(of({ MANAGER_PORT: '7001' })).toBe('http://localhost:7001')
  expect(of({ HOST: '10.0.0.7' })).toBe('http://10.0.0.7:5001')
  expect(of({ HOST: 'fd00::7' })).toBe('http://[fd00::7]:5001')
  expect(of({ HOST: '0.0.0.0', MANAGER_URL: 'https://tasks.example/' })).toBe('https://tasks.example')
})

test.each(['0.0.0.0', '::', '[::]'])(
  'of a manager on %s, which is every address, nobody knows where callers reach it',
  (HOST) => {
    expect(managerUrlOf(loadConfig({ HOST }))).toBeNull()
  },
)

test.each(['WORKER_KINDS', 'TASKER_TOKENS', 'TASKER_HOSTS', 'TASKER_CORS_ORIGINS', 'TASKER_SECRET', 'WORKER_URLS'])(
  '%s of commas alone is a mistake, and not taken for unset or for nothing',
  (name) => {
    for (const value of [',', ' , ,'])
      expect(problemsOf({ [name]: value })).toBe(
        `${name} has commas and nothing between them: name something, or leave it unset`,
      )
    expect(() => loadConfig({ [name]: '' })).not.toThrow()
  },
)

describe('the store', () => {
  const upstash = { UPSTASH_REDIS_REST_URL: 'https://x.upstash.io', UPSTASH_REDIS_REST_TOKEN: 't' }

  test('TCP wins over REST, REST over SQLite', () => {
    const all = { TASKER_DB: 'a.db', ...upstash, REDIS_URL: 'redis://localhost:6379' }
    expect(loadConfig(all).store).toEqual({
      ...{ type: 'redis', url: 'redis://localhost:6379', waitReplicas: 0 },
    })
    expect(loadConfig({ TASKER_DB: 'a.db', ...upstash }).store).toEqual({
      type: 'upstash',
      url: 'https://x.upstash.io',
      token: 't',
    })
    expect(loadConfig({ TASKER_DB: 'a.db' }).store).toEqual({ type: 'sqlite', path: 'a.db' })
  })

  test('half a REST store is a mistake', () => {
    expect(problemsOf({ UPSTASH_REDIS_REST_URL: upstash.UPSTASH_REDIS_REST_URL })).toContain('must be set together')
    expect(problemsOf({ UPSTASH_REDIS_REST_TOKEN: 't' })).toContain('must be set together')
  })
})

describe('the secret', () => {
  test('keys win over a file, a file over the default beside the database', () => {
    const [a, b] = [newKey(), newKey()]
    expect(loadConfig({ TASKER_SECRET: `${a},${b}`, TASKER_SECRET_FILE: 'f' }).secret).toEqual({
      type: 'keys',
      keys: [a, b],
    })
    expect(loadConfig({ TASKER_SECRET_FILE: 'f' }).secret).toEqual({ type: 'file', path: 'f' })
    expect(loadConfig({ TASKER_DB: 'x/y.db' }).secret).toEqual({ type: 'file', path: 'x/y.db.key' })
  })

  test('a database in memory has a key in memory, Redis none by itself', () => {
    expect(loadConfig({ TASKER_DB: ':memory:' }).secret).toEqual({ type: 'random' })
    expect(loadConfig({ REDIS_URL: 'redis://h' }).secret).toEqual({ type: 'none' })
  })
})

describe('tokens', () => {
  test('each with its scopes; without any it has them all', () => {
    expect(loadConfig({ TASKER_TOKENS: 'abc=create+read, def' }).tokens).toEqual([
      { token: 'abc', scopes: ['create', 'read'] },
      { token: 'def', scopes: ['create', 'read', 'manage'] },
    ])
  })

  test('a mistake names the entry and does not show it', () => {
    const message = problemsOf({ TASKER_TOKENS: 'fine,hush-hush=create+admin' })
    expect(message).toContain('TASKER_TOKENS entry 2')
    expect(message).not.toMatch(/hush|admin/)
    expect(problemsOf({ TASKER_TOKENS: 'a=' })).toContain('entry 1')
    expect(problemsOf({ TASKER_TOKENS: '=read' })).toContain('entry 1')
  })
})

describe('the doors', () => {
  const DIGEST = 'a'.repeat(64)

  test('a token may be given as its digest alone, so that the setting holds no secret', () => {
    expect(loadConfig({ TASKER_TOKENS: `sha256:${DIGEST}=read,sha256:${DIGEST}` }).tokens).toEqual([
      { token: `sha256:${DIGEST}`, scopes: ['read'] },
      { token: `sha256:${DIGEST}`, scopes: ['create', 'read', 'manage'] },
    ])
    for (const wrong of [`sha256:${DIGEST.slice(1)}`, `sha256:${DIGEST.toUpperCase()}`, 'sha256:', `md5:${DIGEST}`]) {
      expect(problemsOf({ TASKER_TOKENS: `fine, ${wrong}=read` })).toStartWith('TASKER_TOKENS entry 2')
      expect(problemsOf({ TASKER_TOKENS: wrong })).not.toContain('aaaa')
    }
  })

  test('requests are limited by default where others can reach them', () => {
    const limit = (env: Record<string, string>) => loadConfig(env).doors.rateLimit
    expect(limit({ HOST: '0.0.0.0' })).toEqual({ perSecond: 1_000, burst: 2_000 })
    expect(limit({ HOST: '0.0.0.0', TASKER_RATE_LIMIT: '0' })).toBeNull()
    expect(limit({ TASKER_RATE_LIMIT: '5' })).toEqual({ perSecond: 5, burst: 5 })
    expect(limit({ TASKER_RATE_LIMIT: '5:50' })).toEqual({ perSecond: 5, burst: 50 })
    for (const wrong of ['5:0', '0:5', '-1', '1.5', 'x', '5:', '5:5:5', '99999999']) {
      expect(problemsOf({ TASKER_RATE_LIMIT: wrong })).toStartWith('TASKER_RATE_LIMIT must be')
    }
  })

  test('origins are written as browsers send them', () => {
    const given = 'https://a.example, http://localhost:3000,*'
    expect(loadConfig({ TASKER_CORS_ORIGINS: given }).doors.corsOrigins).toEqual(given.split(/, ?/))
    for (const wrong of ['https://a.example/', 'a.example', 'https://A.example', 'https://', 'file:///x', 'null']) {
      expect(problemsOf({ TASKER_CORS_ORIGINS: wrong })).toStartWith('TASKER_CORS_ORIGINS entry 1')
    }
  })

  test('proxies, waiters and the leave to be open are read', () => {
    const set = { TASKER_OPEN: '1', TASKER_TRUST_PROXY: '2', TASKER_MAX_WAITERS: '7' }
    expect(loadConfig(set).doors).toMatchObject({ open: true, trustedProxies: 2, maxWaiters: 7 })
    for (const opened of [{ TASKER_OPEN: '1' }, { TASKER_TOKENS: 'hush' }, { HOST: '0.0.0.0' }]) {
      expect(loadConfig(opened).doors.hosts).toBeNull()
    }
    expect(problemsOf({ TASKER_OPEN: 'yes' })).toBe('TASKER_OPEN must be 0 or 1')
  })
})

test('everything that is wrong is reported at once, a line each, and no value is shown', () => {
  const message = problemsOf({
    CREATOR_PORT: '70000',
    MANAGER_PORT: 'abc',
    REDIS_URL: 'http://:hunter2@h',
    TASKER_SECRET: 'hunter2',
    LOG_LEVEL: 'loud',
    MANAGER_URL: 'nope',
    WORKER_CONCURRENCY: '0',
    TASKER_LEASE_MS: '1.5',
  })
  const names = message.split('\n').map((line) => line.split(' ')[0])
  expect(names.toSorted()).toEqual([
    'CREATOR_PORT',
    'LOG_LEVEL',
    'MANAGER_PORT',
    'MANAGER_URL',
    'REDIS_URL',
    'TASKER_LEASE_MS',
    'TASKER_SECRET',
    'WORKER_CONCURRENCY',
  ])
  expect(message).not.toContain('hunter2')
})

test('WORKER_URLS names a URL for each kind, and one for all others', () => {
  const { workerUrls } = loadConfig({ WORKER_URLS: 'sum=https://sum.example/, https://all.example' })
  expect(workerUrls).toEqual({ sum: 'https://sum.example', '*': 'https://all.example' })
  expect(() => loadConfig({ WORKER_URLS: 'sum=ftp://x' })).toThrow('WORKER_URLS entry 1')
})

test('replicas are waited for on one server, with sentinels and on a Cluster', () => {
  const waiting = { TASKER_WAIT_REPLICAS: '1', TASKER_PARTITIONS: '8' }
  for (const REDIS_URL of [
    'redis://one:6379',
    'redis+sentinel://one:26379,two:26379/tasks',
    'redis://one:6379,redis://two:6379',
  ]) {
    expect(loadConfig({ ...waiting, REDIS_URL }).store).toMatchObject({ waitReplicas: 1 })
  }
})

test('the nodes of a Cluster need partitions', () => {
  const REDIS_URL = 'redis://one:6379,redis://two:6379'
  expect(() => loadConfig({ REDIS_URL })).toThrow('TASKER_PARTITIONS')
  expect(loadConfig({ REDIS_URL, TASKER_PARTITIONS: '8' }).partitions).toBe(8)
})

test.each(['redis://host/abc', 'redis://host:6379/3x', 'redis://host/1/2', 'redis://one,redis://two/abc'])(
  '%s is refused: a database has a number',
  (REDIS_URL) => {
    const problems = problemsOf({ REDIS_URL, TASKER_PARTITIONS: '2' })
    expect(problems).toMatch(/^REDIS_URL must end with the number of a database/)
    expect(problems).not.toContain('abc')
  },
)

test.each([
  'redis://:hush#hush@host:6379',
  'redis://user:1#hush@host',
  'redis://user:1/hush@host',
  'rediss://user:hush?hush@host/1',
  'redis+sentinel://user:hush@hush@one:26379,two:26379/name',
])('%s is refused: its password must be percent-encoded', (REDIS_URL) => {
  const problems = problemsOf({ REDIS_URL })
  expect(problems).toContain('REDIS_URL has a #, /, ? or @ where a URL does not allow one: percent-encode the password')
  expect(problems).not.toContain('hush')
})

test.each([
  'redis://host',
  'redis://host/',
  'redis://:a@b@host:6379/3?family=6',
  'rediss://user:a%23%2F%3F%40b@host/15',
  'redis+sentinel://user:a#/?b@one:26379,two:26379/name',
  'redis://:a@one:1, redis://:a@two:2',
  'redis://one:1, two:2',
])('%s is a Redis', (url) => {
  expect(loadConfig({ REDIS_URL: url, TASKER_PARTITIONS: '2' }).store).toMatchObject({ type: 'redis', url })
})
