import { describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import { loadRestConfig } from '#services/rest/config.ts'
import { loadConfig, managerUrlOf } from '#shared/runtime/config.ts'
import { settingsOf } from '#shared/test/settings.ts'
import { contracts } from './workers/contracts.ts'

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

  test('Redis keeps what it acknowledged', () => {
    const { redis } = compose.services
    expect(redis).toMatchObject({ image: 'redis:7-alpine', command: ['redis-server', '--appendonly', 'yes'] })
    expect(redis?.volumes).toEqual(['redis:/data'])
    expect(Object.keys(compose.volumes).sort()).toEqual(['redis', 'secret'])
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

  test('every service finds all that it imports in the image', async () => {
    const ignored = (await read('.dockerignore'))
      .split('\n')
      .filter((line) => /^\w/.test(line) || line.startsWith('**/'))
    const entrypoints = ours.map(([, { build }]) => join(root, 'services', String(build?.args.SERVICE), 'main.ts'))
    const loaded: string[] = []
    const { success } = await Bun.build({
      entrypoints,
      target: 'bun',
      plugins: [
        {
          name: 'record',
          setup(build) {
            build.onLoad({ filter: /./ }, ({ path }) => void loaded.push(path.slice(root.length + 1)))
          },
        },
      ],
    })
    expect(success).toBe(true)
    expect(loaded).toEqual(expect.arrayContaining(['services/creator/app.ts', 'shared/broker/redis/lua/claim.lua']))
    const globs = ignored.flatMap((pattern) => [new Bun.Glob(pattern), new Bun.Glob(`${pattern}/**`)])
    const sources = loaded.filter((path) => !path.startsWith('node_modules/'))
    expect(sources.filter((path) => globs.some((glob) => glob.match(path)))).toEqual([])
    expect(sources.filter((path) => !/^(services|shared)\//.test(path))).toEqual([])
    const { devDependencies } = JSON.parse(await read('package.json')) as { devDependencies: Record<string, string> }
    const development = Object.keys(devDependencies).map((name) => `node_modules/${name}/`)
    expect(loaded.filter((path) => development.some((folder) => path.startsWith(folder)))).toEqual([])
  })

  test('does not run as root, and the service itself gets the signals', () => {
    expect(dockerfile).toMatch(/^USER bun$/m)
    expect(dockerfile).toMatch(/^CMD \["sh", "-c", "exec bun /m)
  })
})

/** What compose makes of `${NAME:-default}` when nothing is set. */
function withDefaults(environment: Record<string, string> = {}): Record<string, string> {
  return Object.fromEntries(
    Object.entries(environment).map(([name, value]) => [name, value.replace(/\$\{\w+:-([^}]*)\}/, '$1')]),
  )
}
