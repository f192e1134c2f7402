import { describe, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync, utimesSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { parse } from 'yaml'
import { loadRestConfig } from '#services/rest/config.ts'
import { loadConfig, managerUrlOf } from '#shared/runtime/config.ts'
import { freePort } from '#shared/test/process.ts'
import { settingsOf } from '#shared/test/settings.ts'
import { contracts } from './workers/contracts.ts'
import { BEAT_MS } from './workers/health.ts'

interface ComposeService {
  image: string
  profiles?: string[]
  build?: { context: string; dockerfile: string; args: { SERVICE: string } }
  command?: string[]
  environment?: Record<string, string>
  volumes?: string[]
  ports?: string[]
  healthcheck?: { test: string[] }
  restart: string
  mem_limit?: string
  logging?: unknown
  read_only?: boolean
  tmpfs?: string[]
  cap_drop?: string[]
  security_opt?: string[]
  depends_on?: Record<string, { condition: string }>
}

const root = join(import.meta.dir, '..')
const read = (path: string) => Bun.file(join(root, path)).text()
const compose = parse(await read('docker-compose.yml'), { merge: true }) as {
  services: Record<string, ComposeService>
  volumes: Record<string, null>
}
const dockerfile = await read('services/Dockerfile')
const kinds = Object.values(contracts)
const ours = Object.entries(compose.services).filter(([, { build }]) => build)

describe('docker-compose.yml', () => {
  test('has both services and a worker for every kind, each an image of its own, and the REST endpoint for who asks for it', () => {
    const byDefault = ours.filter(([, { profiles }]) => !profiles).map(([name]) => name)
    expect(byDefault.sort()).toEqual(['creator', 'manager', ...kinds.map(({ kind }) => `worker-${kind}`)].sort())
    expect(ours.filter(([, { profiles }]) => profiles?.includes('rest')).map(([name]) => name)).toEqual(['rest'])
    expect(new Set(ours.map(([, { image }]) => image)).size).toBe(ours.length)
  })

  test.each(ours)('%s is built from an entry point that is there', (name, { build }) => {
    expect(build).toMatchObject({ context: '.', dockerfile: 'services/Dockerfile' })
    expect(build?.args.SERVICE).toBe(name.replace('-', 's/'))
    expect(existsSync(join(root, 'services', String(build?.args.SERVICE), 'main.ts'))).toBe(true)
  })

  test.each(ours)('%s waits for Redis, comes back after a crash and sets only what it reads', (name, service) => {
    // The REST endpoint has settings of its own, one of them without a default.
    const [load, given] = name === 'rest' ? [loadRestConfig, { REST_TOKEN: 'given' }] : [loadConfig, {}]
    expect(service.restart).toBe('unless-stopped')
    expect(service.depends_on).toEqual({ redis: { condition: 'service_healthy' } })
    expect(service.environment).toMatchObject({ REDIS_URL: 'redis://redis:6379' })
    const known = settingsOf(load)
    expect(Object.keys(service.environment ?? {}).filter((name) => !known.has(name))).toEqual([])
    expect(() => load({ ...withDefaults(service.environment), ...given })).not.toThrow()
  })

  test.each(ours)('%s may write nothing but a temporary folder, and gains no rights', (_, service) => {
    const { read_only, tmpfs, cap_drop, security_opt } = service
    expect({ read_only, tmpfs, cap_drop, security_opt }).toEqual({
      ...{ read_only: true, tmpfs: ['/tmp'], cap_drop: ['ALL'], security_opt: ['no-new-privileges:true'] },
    })
  })

  test('a page that points a name of its own at the published ports is not let in', () => {
    for (const name of ['creator', 'manager']) {
      const { doors } = loadConfig(withDefaults(compose.services[name]?.environment))
      expect(doors).toMatchObject({ open: true, hosts: ['localhost', 'creator', 'manager'] })
    }
  })

  test('the key of sealed fields is on a volume that the creator and the kinds with secrets share', () => {
    const withKey = ours.filter(([, { environment }]) => environment?.['TASKER_SECRET_FILE'])
    const withVolume = ours.filter(([, { volumes }]) => volumes?.includes('secret:/var/lib/tasker'))
    const secretKinds = kinds.filter(({ secrets }) => secrets.length > 0).map(({ kind }) => `worker-${kind}`)
    expect(withKey.map(([name]) => name).sort()).toEqual(['creator', ...secretKinds].sort())
    expect(withVolume.map(([name]) => name)).toEqual(withKey.map(([name]) => name))
    for (const [, { environment }] of withKey) {
      expect(environment?.['TASKER_SECRET_FILE']).toBe('/var/lib/tasker/secret.key')
    }
    expect(dockerfile).toMatch(/install --directory --owner=bun .*\/var\/lib\/tasker$/m)
  })

  test('only this machine reaches the ports, which are the defaults', () => {
    const published = Object.values(compose.services).flatMap(({ ports }) => ports ?? [])
    const { creatorPort, managerPort } = loadConfig({})
    const { port: restPort } = loadRestConfig({ REDIS_URL: 'redis://redis:6379', REST_TOKEN: 'given' })
    expect(published).toEqual([creatorPort, managerPort, restPort].map((port) => `127.0.0.1:${port}:${port}`))
    expect(loadConfig(withDefaults(compose.services['creator']?.environment)).managerUrl).toBe(
      managerUrlOf(loadConfig({})),
    )
  })

  test.each(ours.filter(([, { ports }]) => ports))('%s is healthy when it answers on its port', async (_, service) => {
    const port = String(service.ports?.[0]?.split(':').at(-1))
    const [kind, program, ...args] = service.healthcheck?.test ?? []
    expect([kind, program]).toEqual(['CMD', 'bun'])
    using server = Bun.serve({
      port: 0,
      fetch: ({ url }) => new Response(null, { status: new URL(url).pathname === '/healthz' && healthy ? 200 : 503 }),
    })
    const check = () => Bun.spawn([process.execPath, ...args.map((arg) => arg.replace(port, `${server.port}`))]).exited
    let healthy = true
    expect(await check()).toBe(0)
    healthy = false
    expect(await check()).toBe(1)
  })

  test('Redis keeps what it acknowledged, and refuses rather than evicts', () => {
    const { redis } = compose.services
    expect(redis?.image).toBe('redis:7-alpine')
    expect(redis?.command?.map((word) => withDefault(word))).toEqual([
      ...['redis-server', '--appendonly', 'yes', '--maxmemory', '512mb', '--maxmemory-policy', 'noeviction'],
    ])
    expect(redis?.volumes).toEqual(['redis:/data'])
    expect(Object.keys(compose.volumes).sort()).toEqual(['redis', 'secret'])
  })

  test.each(Object.entries(compose.services))(
    '%s has a health check, a limit of memory and logs that do not grow',
    (name, service) => {
      expect(service.healthcheck?.test[0]).toStartWith('CMD')
      expect(withDefault(service.mem_limit ?? '')).toBe(name === 'redis' ? '1g' : '512m')
      expect(service.logging).toEqual({ driver: 'json-file', options: { 'max-size': '10m', 'max-file': '3' } })
    },
  )

  test.each([
    ['+PONG', 0],
    ['-NOAUTH Authentication required.', 1],
    ['-LOADING Redis is loading the dataset in memory', 1],
    ['-MASTERDOWN Link with MASTER is down', 1],
  ])('Redis that answers %s to a ping ends its check with %d', async (reply, code) => {
    const answer = { data: (socket: Bun.Socket) => void socket.write(`${reply}\r\n`) }
    const server = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: answer })
    expect(await check(compose.services['redis'], ['redis-cli', `redis-cli -p ${server.port}`])).toBe(code)
    server.stop(true)
  })

  test('Redis that is not there ends its check with an error', async () => {
    expect(await check(compose.services['redis'], ['redis-cli', `redis-cli -p ${await freePort()}`])).not.toBe(0)
  })

  test.each(ours.filter(([name]) => name.startsWith('worker-')))(
    '%s is healthy while it writes its file',
    async (_, service) => {
      const folder = mkdtempSync(join(tmpdir(), 'tasker-compose-'))
      const file = join(folder, 'healthy')
      const path = service.environment?.['WORKER_HEALTH_FILE'] ?? ''
      expect(service.tmpfs).toEqual([dirname(path)])
      expect(await check(service, [path, file])).not.toBe(0)
      await Bun.write(file, 'well')
      expect(await check(service, [path, file])).toBe(0)
      // One that was written three beats ago.
      const then = Date.now() / 1_000 - (3 * BEAT_MS) / 1_000
      utimesSync(file, then, then)
      expect(await check(service, [path, file])).not.toBe(0)
      rmSync(folder, { recursive: true })
    },
  )

  test('who stands behind a proxy can set all that this takes', () => {
    for (const name of ['creator', 'manager']) {
      const settings = Object.keys(compose.services[name]?.environment ?? {})
      expect(settings).toEqual(
        expect.arrayContaining([
          'TASKER_HOSTS',
          'TASKER_TOKENS',
          'TASKER_TRUST_PROXY',
          'TASKER_CORS_ORIGINS',
          'TASKER_RATE_LIMIT',
        ]),
      )
    }
    expect(compose.services['creator']?.environment).toHaveProperty('MANAGER_URL')
  })
})

describe('Dockerfile', () => {
  test('runs the Bun that package.json names', async () => {
    const { packageManager } = JSON.parse(await read('package.json')) as { packageManager: string }
    const images = [...dockerfile.matchAll(/^FROM oven\/(\S+)-slim\b/gm)].map(([, image]) => image?.replace(':', '@'))
    expect(images).toEqual([packageManager, packageManager])
  })

  test('copies what is there and what .dockerignore lets through', async () => {
    const sources = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, paths = '']) =>
      paths.split(' '),
    )
    const ignore = (await read('.dockerignore')).split('\n').filter((line) => line !== '' && !line.startsWith('#'))
    expect(ignore[0]).toBe('*')
    expect(sources).toEqual(expect.arrayContaining(['package.json', 'bun.lock', 'services', 'shared']))
    expect(sources.filter((source) => !existsSync(join(root, source)))).toEqual([])
    expect(sources.filter((source) => !ignore.includes(`!${source}`))).toEqual([])
  })

  test('has what its services import, and nothing else: no test, no fuzz, nothing of the edge', async () => {
    const rules = (await read('.dockerignore')).split('\n').filter((line) => line !== '' && !line.startsWith('#'))
    const files = [...new Bun.Glob('{services,shared}/**').scanSync({ cwd: root, dot: true })]
    const copied = files.filter((path) => isCopied(path, rules))
    const entries = ours.map(([, { build }]) => `services/${build?.args.SERVICE}/main.ts`)
    const needed = new Set([...entries, 'services/workers/main.ts'])
    for (const path of needed) for (const one of await importsOf(path)) needed.add(one)
    expect([...needed].filter((path) => !copied.includes(path))).toEqual([])
    expect(copied.filter((path) => !needed.has(path))).toEqual([])
    expect(copied).toEqual(expect.arrayContaining(['services/creator/app.ts', 'shared/broker/redis/lua/claim.lua']))
    expect(isCopied('services/fuzz/main.ts', rules)).toBe(false)
    expect(isCopied('shared/broker/list.test.ts', rules)).toBe(false)
  })

  test('no service imports what is for development alone', async () => {
    const entrypoints = ours.map(([, { build }]) => join(root, 'services', String(build?.args.SERVICE), 'main.ts'))
    const loaded: string[] = []
    const record: Bun.BunPlugin = {
      name: 'record',
      setup: (build) => void build.onLoad({ filter: /./ }, ({ path }) => void loaded.push(path.slice(root.length + 1))),
    }
    expect((await Bun.build({ entrypoints, target: 'bun', plugins: [record] })).success).toBe(true)
    const { devDependencies } = JSON.parse(await read('package.json')) as { devDependencies: Record<string, string> }
    const development = Object.keys(devDependencies).map((name) => `node_modules/${name}/`)
    expect(loaded.filter((path) => development.some((folder) => path.startsWith(folder)))).toEqual([])
  })

  test('does not run as root, and the service itself gets the signals', () => {
    expect(dockerfile).toMatch(/^USER bun$/m)
    expect(dockerfile).toMatch(/^CMD \["sh", "-c", "exec bun /m)
  })
})

/** Runs a health check as Docker does, with one word of it replaced, and gives its exit code. */
function check(service: ComposeService | undefined, [word, by]: [string, string]): Promise<number> {
  const [kind, command = ''] = service?.healthcheck?.test ?? []
  expect(kind).toBe('CMD-SHELL')
  const script = command.replaceAll('$$', '$').replaceAll(word, by)
  return Bun.spawn(['sh', '-c', script], { stdout: 'ignore', stderr: 'ignore' }).exited
}

/** What compose makes of `${NAME:-default}` when nothing is set. */
function withDefault(text: string): string {
  return text.replace(/\$\{\w+:-([^}]*)\}/, '$1')
}

function withDefaults(environment: Record<string, string> = {}): Record<string, string> {
  return Object.fromEntries(Object.entries(environment).map(([name, value]) => [name, withDefault(value)]))
}

/** As Docker reads .dockerignore: of the rules that name a file or a folder above it, the last counts. */
function isCopied(path: string, rules: readonly string[]): boolean {
  const parts = path.split('/')
  const above = parts.map((_, i) => parts.slice(0, i + 1).join('/'))
  const last = rules.findLast((rule) => above.some((one) => new Bun.Glob(rule.replace(/^!/, '')).match(one)))
  return last === undefined || last.startsWith('!')
}

/** Files of ours that a file names: imports, those of types too, and what it starts in a thread of its own. */
async function importsOf(path: string): Promise<string[]> {
  const names = [...(await read(path)).matchAll(/(?:\b(?:from |import\(|import )'(?=[.#])|\bnew URL\(')([^':]+)'/g)]
  return names.map(([, name = '']) => (name.startsWith('#') ? name.slice(1) : join(dirname(path), name)))
}
