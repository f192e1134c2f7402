import { describe, expect, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { loadConfig } from '#shared/runtime/config.ts'
import { settingsOf } from '#shared/test/settings.ts'
import { loadRestConfig } from './rest/config.ts'
import { contracts } from './workers/contracts.ts'

const root = join(import.meta.dir, '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const kinds = Object.values(contracts)
const secretKinds = kinds.filter(({ secrets }) => secrets.length > 0).map(({ kind }) => `workers/${kind}`)

interface WranglerConfig {
  name: string
  main: string
  compatibility_date: string
  compatibility_flags?: string[]
  rules: { type: string; globs: string[]; fallthrough: boolean }[]
  triggers?: { crons: string[] }
  vars?: Record<string, string>
}

const services = ['creator', 'manager']
const workers = kinds.map(({ kind }) => `workers/${kind}`)
const wrangler = new Map(
  [...services, ...workers].map((service) => {
    const text = read(`services/${service}/wrangler.jsonc`)
    return [service, { text, config: Bun.JSONC.parse(text) as WranglerConfig }]
  }),
)
const wranglerOf = (service: string) => {
  const found = wrangler.get(service)
  if (!found) throw new Error(`There is no configuration for ${service}.`)
  return found
}

describe('wrangler.jsonc', () => {
  test('is beside every edge.ts, and nowhere else', () => {
    const glob = (name: string) =>
      Array.from(new Bun.Glob(`**/${name}`).scanSync({ cwd: join(root, 'services') }), dirname).sort()
    const entries = glob('edge.ts').filter((folder) => !['.', 'workers'].includes(folder))
    expect(entries).toEqual([...wrangler.keys()].sort())
    expect(glob('wrangler.jsonc')).toEqual(entries)
  })

  test.each([...services, ...workers])('%s is entered by its edge.ts and named after its folder', (service) => {
    const { name, main } = wranglerOf(service).config
    expect(main).toBe('./edge.ts')
    expect(existsSync(join(root, 'services', service, main))).toBe(true)
    expect(name).toBe(`tasker-${service.replace('workers/', 'worker-')}`)
  })

  test.each([...services, ...workers])('%s takes every script of Redis as text', (service) => {
    const { rules } = wranglerOf(service).config
    const globs = rules.filter(({ type }) => type === 'Text').flatMap((rule) => rule.globs)
    const scripts = Array.from(new Bun.Glob('shared/**/*.lua').scanSync({ cwd: root }))
    expect(scripts.length).toBeGreaterThan(5)
    expect(scripts.filter((script) => !globs.some((glob) => new Bun.Glob(glob).match(script)))).toEqual([])
  })

  test.each([...services, ...workers])('%s has a schedule when it has something to do on it', async (service) => {
    const { default: edge } = (await import(`./${service}/edge.ts`)) as { default: { scheduled?: unknown } }
    const crons = wranglerOf(service).config.triggers?.crons
    expect(crons).toEqual(edge.scheduled ? ['*/5 * * * *'] : undefined)
    expect(workers.includes(service)).toBe(edge.scheduled !== undefined)
  })

  test.each([...services, ...workers])('%s sets only what loadConfig reads, and no secret', (service) => {
    const { vars = {} } = wranglerOf(service).config
    expect(Object.keys(vars).filter((name) => !settingsOf(loadConfig).has(name))).toEqual([])
    expect(Object.keys(vars).filter((name) => /TOKEN|SECRET|UPSTASH/.test(name))).toEqual([])
    expect(() => loadConfig(vars)).not.toThrow()
  })

  test.each([...services, ...workers])('%s names the secrets that it needs, as the document does', (service) => {
    const [, comment = ''] = /\/\/ Secrets, never here: (.*)\.$/m.exec(wranglerOf(service).text) ?? []
    const needed = [
      ...['UPSTASH_REDIS_REST_URL', 'UPSTASH_REDIS_REST_TOKEN'],
      ...(services.includes(service) ? ['TASKER_TOKENS'] : []),
      ...(service === 'creator' || secretKinds.includes(service) ? ['TASKER_SECRET'] : []),
      ...(service === 'manager' ? [] : ['DRAIN_TOKEN']),
    ]
    expect(comment.split(', ').sort()).toEqual([...needed].sort())
    expect(needed.filter((name) => !settingsOf(loadConfig).has(name))).toEqual([])
    const row = read('docs/deploy/cloudflare.md')
      .split('\n')
      .find((line) => line.startsWith(`| \`${wranglerOf(service).config.name}\` |`))
    const documented = Array.from(row?.matchAll(/`([A-Z_]+)`/g) ?? [], ([, name]) => name)
    expect(documented.sort()).toEqual(needed.slice(2).sort())
  })

  test('whoever queues tasks knows where every worker is, and may call it', () => {
    const hosts = Object.fromEntries(
      kinds.map(({ kind }) => [kind, `https://tasker-worker-${kind}.YOUR-SUBDOMAIN.workers.dev`]),
    )
    for (const service of ['creator', ...workers]) {
      const { vars = {}, compatibility_flags: flags } = wranglerOf(service).config
      expect(loadConfig(vars).workerUrls).toEqual(hosts)
      expect(flags).toEqual(['global_fetch_strictly_public'])
    }
    const { managerUrl } = loadConfig(wranglerOf('creator').config.vars ?? {})
    expect(managerUrl).toBe('https://tasker-manager.YOUR-SUBDOMAIN.workers.dev')
  })

  test('names the date of the runtime that the tests run on', () => {
    const [, tested] = /compatibilityDate: '([\d-]+)'/.exec(read('services/runtimes.test.ts')) ?? []
    const dates = [...wrangler.values()].map(({ config }) => config.compatibility_date)
    expect(new Set(dates)).toEqual(new Set([String(tested)]))
  })
})

interface FlyService {
  processes: string[]
  internal_port: number
  auto_stop_machines: string
  auto_start_machines: boolean
  min_machines_running: number
  ports: { port: number; handlers: string[] }[]
  http_checks: { path: string }[]
}

interface FlyConfig {
  app: string
  kill_signal: string
  kill_timeout: number
  build: { dockerfile: string; args: { SERVICE: string } }
  env: Record<string, string>
  processes: Record<string, string>
  services: FlyService[]
  restart: { policy: string; processes: string[] }[]
}

describe('fly.toml', () => {
  const fly = Bun.TOML.parse(read('fly.toml')) as FlyConfig
  const config = loadConfig(fly.env)
  const serviceOf = (group: string) => fly.services.filter(({ processes }) => processes.includes(group))

  test('builds one image, whose Dockerfile and build argument are there', () => {
    expect(existsSync(join(root, fly.build.dockerfile))).toBe(true)
    const named = Array.from(read(fly.build.dockerfile).matchAll(/^ARG (\w+)/gm), ([, name]) => name)
    expect(Object.keys(fly.build.args)).toEqual(named.map(String))
    expect(existsSync(join(root, 'services', fly.build.args.SERVICE, 'main.ts'))).toBe(true)
  })

  test('every group runs an entry point that is there', () => {
    expect(Object.keys(fly.processes)).toEqual(['creator', 'manager', 'worker'])
    for (const command of Object.values(fly.processes)) {
      const [, file = ''] = /^bun (services\/\S+\/main\.ts)$/.exec(command) ?? []
      expect(`${command}: ${existsSync(join(root, file || '-'))}`).toBe(`${command}: true`)
    }
  })

  test('sets only what loadConfig reads, for everybody who reaches it, and no secret', () => {
    expect(Object.keys(fly.env).filter((name) => !settingsOf(loadConfig).has(name))).toEqual([])
    expect(Object.keys(fly.env).filter((name) => /TOKEN|SECRET|UPSTASH|REDIS/.test(name))).toEqual([])
    expect(config.host).toBe('0.0.0.0')
  })

  test('creator and manager are reached on their ports, and stop when idle', () => {
    for (const [group, port] of [
      ['creator', config.creatorPort],
      ['manager', config.managerPort],
    ] as const) {
      expect(serviceOf(group)).toMatchObject([
        {
          ...{ processes: [group], internal_port: port, min_machines_running: 0 },
          ...{ auto_stop_machines: 'stop', auto_start_machines: true, http_checks: [{ path: '/healthz' }] },
        },
      ])
    }
    const outside = fly.services.flatMap(({ ports }) => ports.map(({ port }) => port))
    expect(new Set(outside).size).toBe(outside.length)
    // A shared address serves a port other than 80 when TLS tells whose it is.
    const plain = fly.services.flatMap(({ ports }) => ports.filter(({ handlers }) => !handlers.includes('tls')))
    expect(plain.map(({ port }) => port)).toEqual([80])
    const [manager] = serviceOf('manager')
    expect(config.managerUrl).toBe(`https://${fly.app}.fly.dev:${manager?.ports[0]?.port}`)
  })

  test('the worker has no service that could stop it, comes back, and has the time to give its tasks back', () => {
    expect(serviceOf('worker')).toEqual([])
    expect(fly.restart).toEqual([{ policy: 'always', processes: ['worker'] }])
    expect(fly.kill_signal).toBe('SIGTERM')
    expect(fly.kill_timeout * 1000).toBeGreaterThan(config.workerGraceMs)
  })
})

test('deno.json allows what older versions of Deno hold back: imports of text, and a cron', () => {
  expect(JSON.parse(read('deno.json'))).toEqual({ unstable: ['raw-imports', 'cron'] })
})

const pages = readdirSync(join(root, 'docs/deploy')).map((file) => `docs/deploy/${file}`)

describe('docs/deploy', () => {
  test('has a page for each place', () => {
    const places = ['cloudflare', 'deno', 'docker', 'fly', 'upstash']
    expect(pages.sort()).toEqual(places.map((place) => `docs/deploy/${place}.md`))
  })

  test.each(pages)('%s leads to files and headings that are there', (page) => {
    const links = Array.from(read(page).matchAll(/\]\(([^)\s]+)\)/g), ([, target = '']) => target)
    expect(links.length).toBeGreaterThan(0)
    for (const link of links.filter((target) => !/^[a-z]+:/.test(target))) {
      const [path = '', anchor] = link.split('#')
      const file = path === '' ? page : join(dirname(page), path)
      expect(`${link} ${existsSync(join(root, file))}`).toBe(`${link} true`)
      if (anchor !== undefined) expect(anchorsOf(read(file))).toContain(anchor)
    }
  })

  test.each(pages)('%s names only files that are there', (page) => {
    const text = read(page)
    // What a page tells the reader to write is there once that is done.
    const written = Array.from(text.matchAll(/^\/\/ (services\/\S+\.ts)/gm), ([, file = '']) => file)
    const named = Array.from(text.matchAll(/\b(?:services|shared|docs)\/[\w./-]*\w\.\w+/g), ([file]) => file)
    const missing = named.filter((file) => !written.includes(file) && !existsSync(join(root, file)))
    expect(missing).toEqual([])
  })

  test.each(pages)('%s names only settings that something reads', (page) => {
    // Compose reads some of its own.
    const ofCompose = Array.from(read('docker-compose.yml').matchAll(/\$\{(\w+):-/g), ([, name = '']) => name)
    const known = new Set([...settingsOf(loadConfig), ...settingsOf(loadRestConfig), ...ofCompose, 'SERVICE'])
    const pattern = /\b(?:TASKER|WORKER|DRAIN|UPSTASH|REDIS|REST|OPENAI|CREATOR|MANAGER|LOG)_[A-Z_]*[A-Z]\b/g
    const named = Array.from(read(page).matchAll(pattern), ([name]) => name)
    expect(named.length).toBeGreaterThan(0)
    expect(named.filter((name) => !known.has(name))).toEqual([])
  })
})

/** As GitHub makes them. */
function anchorsOf(markdown: string): string[] {
  return Array.from(markdown.matchAll(/^#+ (.*)$/gm), ([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  )
}
