import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

let folder = ''
const running = new Set<Bun.Subprocess>()
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tasker-service-'))
})
afterEach(async () => {
  for (const child of running) child.kill('SIGKILL')
  running.clear()
  await rm(folder, { recursive: true })
})

function start(service: 'creator' | 'manager', env: Record<string, string> = {}) {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, service, 'main.ts')], {
    env: {
      PATH: process.env['PATH'] ?? '',
      TASKER_DB: join(folder, 'tasker.db'),
      CREATOR_PORT: '0',
      MANAGER_PORT: '0',
      ...env,
    },
    stdout: 'pipe',
    stderr: 'pipe',
  })
  running.add(child)
  return child
}

/** What a service writes until a line of it fits. */
async function linesUntil(child: ReturnType<typeof start>, pattern: RegExp): Promise<string> {
  const decoder = new TextDecoder()
  const reader = child.stdout.getReader()
  let lines = ''
  while (!pattern.test(lines) || !lines.endsWith('\n')) {
    const { value, done } = await reader.read()
    if (done) throw new Error(`It ended: ${lines}${await new Response(child.stderr).text()}`)
    lines += decoder.decode(value, { stream: true })
  }
  reader.releaseLock()
  return lines
}

async function listening(child: ReturnType<typeof start>): Promise<{ url: string; lines: string }> {
  const lines = await linesUntil(child, /Listening/)
  return { url: /"url":"([^"]+)"/.exec(lines)?.[1] ?? '', lines }
}

test('creator and manager in two processes share a store, and stop when they are told to', async () => {
  const [creator, manager] = [start('creator'), start('manager', { LOG_LEVEL: 'debug' })]
  const [{ url: creatorUrl }, { url: managerUrl }] = [await listening(creator), await listening(manager)]
  const created = await fetch(`${creatorUrl}/sum`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Accept: 'text/plain' },
    body: '{"payload":{"num1":5,"num2":7}}',
  })
  const id = await created.text()
  expect(created.status).toBe(201)
  const task = await fetch(`${managerUrl}/task/${id}`)
  expect(await task.json()).toMatchObject({ task_id: id, status: 'queued', payload: { num1: 5, num2: 7 } })

  const waiting = fetch(`${managerUrl}/task/${id}?wait=60`)
  await linesUntil(manager, /Watching for tasks/)
  creator.kill('SIGTERM')
  manager.kill('SIGTERM')
  expect((await waiting).status).toBe(200)
  expect([await creator.exited, await manager.exited]).toEqual([0, 0])
})

test('what is wrong with the settings is told line by line on stderr, and the exit code is 1', async () => {
  const child = start('creator', { CREATOR_PORT: 'x', LOG_LEVEL: 'loud', TASKER_SECRET: 'hunter2' })
  expect(await child.exited).toBe(1)
  const text = await new Response(child.stderr).text()
  expect(text.trim().split('\n')).toEqual([
    expect.stringMatching(/^creator: CREATOR_PORT must/),
    expect.stringMatching(/^creator: TASKER_SECRET entry 1/),
    expect.stringMatching(/^creator: LOG_LEVEL must/),
  ])
  expect(text).not.toContain('hunter2')
})

test('a busy port is told in one line', async () => {
  const busy = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response() })
  const child = start('manager', { MANAGER_PORT: String(busy.port) })
  expect(await child.exited).toBe(1)
  expect(await new Response(child.stderr).text()).toMatch(
    new RegExp(`^manager: port ${busy.port} is in use.*MANAGER_PORT.*\n$`),
  )
  await busy.stop(true)
})

test('a store that cannot be opened is told in one line', async () => {
  const child = start('manager', { TASKER_DB: '/dev/null/tasker.db' })
  expect(await child.exited).toBe(1)
  expect(await new Response(child.stderr).text()).toMatch(/^manager: .*\/dev\/null\/tasker\.db .*TASKER_DB.*\n$/)
})

test.each(['creator', 'manager'] as const)('%s on an open address without tokens does not start', async (service) => {
  const child = start(service, { HOST: '0.0.0.0' })
  expect(await child.exited).toBe(1)
  const text = await new Response(child.stderr).text()
  expect(text.trim().split('\n')).toEqual([expect.stringMatching(/HOST=0\.0\.0\.0.*TASKER_TOKENS.*TASKER_OPEN=1/)])
  expect(await new Response(child.stdout).text()).not.toContain('Listening')
})

test('an open address without tokens is warned of when it is meant, and with tokens is not', async () => {
  const open = await listening(start('manager', { HOST: '0.0.0.0', TASKER_OPEN: '1' }))
  expect(open.lines).toContain('"WARN"')
  expect(open.lines).toContain('TASKER_TOKENS')
  const { url, lines } = await listening(start('manager', { HOST: '0.0.0.0', TASKER_TOKENS: 'abc' }))
  expect(lines).not.toContain('"WARN"')
  const at = url.replace('0.0.0.0', '127.0.0.1')
  expect((await fetch(`${at}/tasks`)).status).toBe(401)
  expect((await fetch(`${at}/tasks`, { headers: { Authorization: 'Bearer abc' } })).status).toBe(200)
})

test('a key file that cannot be made is named in one line, with the settings that say where it lies', async () => {
  const child = start('creator', { TASKER_SECRET_FILE: '/dev/null/secret.key' })
  expect(await child.exited).toBe(1)
  const text = await new Response(child.stderr).text()
  expect(text).toMatch(/^creator: .*\/dev\/null\/secret\.key .*TASKER_DB.*TASKER_SECRET_FILE.*\n$/)
})

test('a creator on every address sends callers to the manager of the host that they called, and says what to set', async () => {
  const { url, lines } = await listening(
    start('creator', { HOST: '0.0.0.0', TASKER_TOKENS: 'abc', MANAGER_PORT: '7001' }),
  )
  expect(lines).toMatch(/"WARN".*MANAGER_URL/)
  const created = await fetch(`${url.replace('0.0.0.0', '127.0.0.1')}/sum`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Authorization: 'Bearer abc', Host: 'tasks.example:5000' },
    body: '{"num1":5,"num2":7}',
  })
  expect(created.status).toBe(201)
  expect(created.headers.get('Location')).toStartWith('http://tasks.example:7001/task/')
})
