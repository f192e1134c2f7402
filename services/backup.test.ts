import { afterEach, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { newKey } from '#shared/runtime/seal.ts'
import { endProcesses, freePort, startProcess } from '#shared/test/process.ts'
import { startRedis } from '#shared/test/redis-server.ts'

const page = readFileSync(join(import.meta.dir, '../docs/backup.md'), 'utf8')

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  await endProcesses()
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

/** The first two blocks of commands below a heading: to back up, and to restore. */
function commandsOf(heading: string): [backUp: string, restore: string] {
  const [, section = ''] = page.split(`\n## ${heading}\n`)
  const [backUp = '', restore = ''] = Array.from(section.matchAll(/^```sh\n(.*?)^```/gms), ([, code = '']) => code)
  return [backUp, restore]
}

/** Runs commands of the page in a folder, as somebody would who types them; with other words where the page means a default. */
async function run(commands: string, folder: string, words: Record<string, string> = {}): Promise<void> {
  const script = Object.entries(words).reduce((text, [word, by]) => text.replaceAll(word, by), commands)
  const PATH = [dirname(process.execPath), process.env['PATH']].join(delimiter)
  const shell = Bun.spawn(['sh', '-ec', script], { cwd: folder, env: { PATH }, stdout: 'ignore', stderr: 'pipe' })
  if ((await shell.exited) !== 0) throw new Error(`${script}\n${await new Response(shell.stderr).text()}`)
}

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'tasker-backup-'))
  cleanups.push(() => rmSync(folder, { recursive: true }))
  return folder
}

/** A provider that notes which keys it was given. */
function startProvider() {
  const keys: (string | null)[] = []
  const server = Bun.serve({
    ...{ port: 0, hostname: '127.0.0.1' },
    fetch(request) {
      keys.push(request.headers.get('Authorization'))
      return Response.json({ choices: [{ message: { role: 'assistant', content: 'An answer.' } }] })
    },
  })
  cleanups.push(() => server.stop(true))
  return { keys, url: `http://127.0.0.1:${server.port}/v1` }
}

async function startTasker(settings: Record<string, string>) {
  const [creator, manager] = [await freePort(), await freePort()]
  const ports = { CREATOR_PORT: String(creator), MANAGER_PORT: String(manager), LOG_LEVEL: 'info' }
  const tasker = startProcess('services/dev.ts', { ...ports, ...settings })
  await tasker.prints('Working.')
  return {
    async create(path: string, payload: unknown): Promise<string> {
      const headers = { 'Content-Type': 'application/json', Accept: 'text/plain' }
      const body = JSON.stringify(payload)
      return (await fetch(`http://127.0.0.1:${creator}${path}`, { method: 'POST', headers, body })).text()
    },
    async read(id: string): Promise<unknown> {
      const response = await fetch(`http://127.0.0.1:${manager}/task/${id}?wait=20`)
      return response.status === 200 ? ((await response.json()) as { result: unknown }).result : response.status
    },
    async stop() {
      tasker.kill('SIGTERM')
      expect(await tasker.ended).toBe(0)
    },
  }
}

/** Backs up a store with a result and a task that waits with a secret, loses it, brings it back, and looks whether both are there. */
async function lose(store: {
  settings: Record<string, string>
  backUp: () => Promise<void>
  /** Loses all that was not backed up, while Tasker does not run. */
  restore: () => Promise<void>
}) {
  const { keys, url } = startProvider()
  const settings = { ...store.settings, OPENAI_BASE_URL: url }
  const before = await startTasker({ ...settings, WORKER_KINDS: 'sum' })
  const sum = await before.create('/sum', { num1: 5, num2: 7 })
  expect(await before.read(sum)).toBe(12)
  const chat = await before.create('/chat', { question: 'Why?', api_key: 'sk-from-before' })
  await store.backUp()
  const later = await before.create('/sum', { num1: 1, num2: 1 })
  expect(await before.read(later)).toBe(2)
  await before.stop()

  await store.restore()
  const after = await startTasker(settings)
  expect(await after.read(sum)).toBe(12)
  expect(await after.read(later)).toBe(404)
  expect(await after.read(chat)).toBe('An answer.')
  expect(keys).toEqual(['Bearer sk-from-before'])
  await after.stop()
}

test('the commands for SQLite bring back tasks and the key of their secrets, taken while Tasker runs', async () => {
  const folder = newFolder()
  const [backUp, restore] = commandsOf('SQLite')
  await lose({
    settings: { TASKER_DB: join(folder, '.tasker/tasker.db') },
    backUp: () => run(backUp, folder),
    async restore() {
      rmSync(join(folder, '.tasker'), { recursive: true })
      await run(restore, folder)
    },
  })
}, 60_000)

test('the commands for Redis bring back tasks, from a snapshot that is taken while Tasker runs, into a Redis with a journal', async () => {
  const folder = newFolder()
  const [backUp, restore] = commandsOf('Redis')
  const redis = await startRedis({ args: ['--appendonly', 'yes', '--repl-diskless-sync-delay', '0'] })
  cleanups.push(() => redis.stop())
  const port = new URL(redis.url).port
  const words = { 'redis-cli': `redis-cli -p ${port}`, 'redis-server': `redis-server --port ${port}` }
  await lose({
    settings: { REDIS_URL: redis.url, TASKER_SECRET: newKey() },
    backUp: () => run(backUp, folder, words),
    async restore() {
      await redis.stop()
      await run(restore, folder, words)
      const again = await startRedis({ dir: join(folder, 'data'), port: Number(port), args: ['--appendonly', 'yes'] })
      cleanups.push(() => again.stop())
    },
  })
}, 60_000)
