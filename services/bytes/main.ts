// What many large tasks and unfinished requests cost in memory and time: `bun run long bytes-load`. Ends with 1 when a
// process grows too large or does not answer in time.
import { connect } from 'node:net'
import { MAX_BODY } from '#shared/http/body.ts'
import { newKey } from '#shared/runtime/seal.ts'
import { endProcesses, freePort, residentBytes, startProcess } from '#shared/test/process.ts'
import { startRedis } from '#shared/test/redis-server.ts'

const TASKS = 300
const HALF_BODIES = 800
const MAX_RESIDENT = 300_000_000
const MAX_HEALTH_MS = 500
const MAX_STOP_MS = 3_000
const MAX_ANSWER = 8_000_000

const failures: string[] = []
const redis = await startRedis()
const provider = Bun.serve({
  ...{ port: 0, hostname: '127.0.0.1' },
  async fetch(request) {
    await request.bytes()
    await Bun.sleep(1_000)
    return Response.json({ choices: [{ index: 0, message: { role: 'assistant', content: 'Well.' } }] })
  },
})
const ports = { creator: await freePort(), manager: await freePort() }
const common = {
  ...{ LOG_LEVEL: 'silent', REDIS_URL: redis.url, TASKER_SECRET: newKey(), OPENAI_BASE_URL: `${provider.url}v1` },
  ...{ CREATOR_PORT: `${ports.creator}`, MANAGER_PORT: `${ports.manager}` },
}
const processes = {
  creator: startProcess('services/creator/main.ts', common),
  manager: startProcess('services/manager/main.ts', common),
  worker: startProcess('services/workers/main.ts', common),
}
const [creator, manager] = [`http://127.0.0.1:${ports.creator}`, `http://127.0.0.1:${ports.manager}`]
for (const url of [creator, manager]) while (!(await fetch(`${url}/readyz`).catch(() => null))?.ok) await Bun.sleep(50)

const peaks: Record<string, number> = {}
const looks = setInterval(() => {
  for (const [name, { pid }] of Object.entries(processes))
    peaks[name] = Math.max(peaks[name] ?? 0, residentBytes(pid) || 0)
}, 50)

/** Asks for `/healthz` in a process of its own, which nothing else holds up; gives the longest answer in ms. */
function probe(url: string) {
  const code = `let worst = 0; process.on('SIGTERM', () => { console.log(worst); process.exit() })
    for (;;) { const began = performance.now(); await (await fetch('${url}/healthz')).text()
    worst = Math.max(worst, performance.now() - began); await Bun.sleep(20) }`
  const child = Bun.spawn([process.execPath, '-e', code], { stdout: 'pipe', stderr: 'ignore' })
  return async () => {
    child.kill('SIGTERM')
    return Number(await new Response(child.stdout).text())
  }
}

async function phase(name: string, work: () => Promise<unknown>): Promise<void> {
  for (const one of Object.keys(processes)) peaks[one] = 0
  const probes = { creator: probe(creator), manager: probe(manager) }
  await Bun.sleep(300)
  const began = performance.now()
  await work()
  const ms = Math.round(performance.now() - began)
  const told: string[] = []
  for (const [service, stop] of Object.entries(probes)) {
    const worst = await stop()
    told.push(`${service} /healthz ${Math.round(worst)} ms`)
    if (!(worst < MAX_HEALTH_MS)) failures.push(`${name}: ${service} answered /healthz after ${Math.round(worst)} ms`)
  }
  for (const [one, bytes] of Object.entries(peaks)) {
    told.push(`${one} ${Math.round(bytes / 1e6)} MB`)
    if (bytes > MAX_RESIDENT) failures.push(`${name}: ${one} had ${Math.round(bytes / 1e6)} MB`)
  }
  console.log(`${name}: ${ms} ms; ${told.join(', ')}`)
}

const ids: string[] = []
async function create(): Promise<void> {
  const body = JSON.stringify({ question: '\u0001'.repeat(100_000), api_key: 'sk-0123456789' })
  for (;;) {
    const headers = { 'Content-Type': 'application/json', Accept: 'text/plain' }
    const response = await fetch(`${creator}/chat`, { method: 'POST', headers, body })
    const text = await response.text()
    if (response.status === 201) return void ids.push(text)
    if (response.status !== 503) throw new Error(`${response.status}: ${text.slice(0, 500)}`)
    await Bun.sleep(100)
  }
}

async function read(path: string): Promise<string> {
  const text = await (await fetch(`${manager}${path}`)).text()
  if (text.length > MAX_ANSWER) failures.push(`${path} gave ${text.length} bytes`)
  return text
}

async function pages(): Promise<void> {
  let cursor: string | null = ''
  for (let i = 0; i < 20 && cursor !== null; i++) {
    const page: string = await read(`/tasks?limit=200${cursor && `&cursor=${cursor}`}`)
    cursor = (JSON.parse(page) as { cursor: string | null }).cursor
  }
}

async function halfBodies(): Promise<void> {
  let closed = 0
  const sockets = Array.from({ length: HALF_BODIES }, () => {
    const head = 'POST /sum HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    const socket = connect(ports.creator, '127.0.0.1', () =>
      socket.write(`${head}Content-Length: ${MAX_BODY}\r\n\r\n${' '.repeat(MAX_BODY - 1)}`),
    )
    socket.on('error', () => {})
    socket.on('close', () => closed++)
    return socket
  })
  await Bun.sleep(3_000)
  console.log(`of ${HALF_BODIES} unfinished bodies ${closed} were refused`)
  for (const socket of sockets) socket.destroy()
}

await phase(`${TASKS} tasks of 600 kB are created`, () => Promise.all(Array.from({ length: TASKS }, create)))
await phase('eight lists at once', () => Promise.all(Array.from({ length: 8 }, pages)))
await phase(`${TASKS} requests wait`, () => Promise.all(ids.map((id) => read(`/task/${id}?wait=10`))))
await phase('unfinished bodies', halfBodies)
await phase('all tasks end', async () => {
  for (const id of ids) while (!(await read(`/task/${id}?wait=60`)).includes('"succeeded"'));
})
clearInterval(looks)

for (const [name, one] of Object.entries(processes)) {
  if (name === 'creator') {
    const head = 'POST /sum HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{'
    const socket = connect(ports.creator, '127.0.0.1', () => socket.write(head))
    socket.on('error', () => {})
    await Bun.sleep(200)
  }
  const began = performance.now()
  one.kill('SIGTERM')
  await one.ended
  const ms = Math.round(performance.now() - began)
  console.log(`${name} stopped within ${ms} ms`)
  if (ms > MAX_STOP_MS) failures.push(`${name} took ${ms} ms to stop`)
}
await endProcesses()
await provider.stop(true)
await redis.stop()
for (const failure of failures) console.error(failure)
process.exit(failures.length > 0 ? 1 : 0)
