import { join } from 'node:path'
import { BENCH } from '../measure/run.ts'

export interface HttpLoad {
  readonly requestsPerSecond: number
  readonly p99Ms: number
  readonly tool: string
}

const CONNECTIONS = 64
export const BODY = '{"payload":{"num1":5,"num2":7}}'

/** Posts as fast as the server answers, from a process of its own: wrk when it is installed, as it leaves more of the machine to the server, else autocannon. */
export function postFlatOut(url: string, seconds: number): Promise<HttpLoad> {
  return Bun.which('wrk') ? wrk(url, seconds) : autocannon(url, seconds)
}

async function wrk(url: string, seconds: number): Promise<HttpLoad> {
  const script = join(BENCH, 'load', 'post.lua')
  const out = await output(['wrk', '-t1', `-c${CONNECTIONS}`, `-d${seconds}s`, '-s', script, url, '--', BODY])
  const told = JSON.parse(out.slice(out.lastIndexOf('{'))) as Record<'requests' | 'us' | 'p99' | 'errors', number>
  if (told.errors > 0) throw new Error(`${told.errors} requests to ${url} failed.`)
  return { requestsPerSecond: told.requests / (told.us / 1e6), p99Ms: told.p99 / 1_000, tool: 'wrk' }
}

async function autocannon(url: string, seconds: number): Promise<HttpLoad> {
  const program = join(BENCH, 'node_modules', 'autocannon', 'autocannon.js')
  // Made for Node, and faster there; Bun runs it as well.
  const runtime = Bun.which('node') ?? process.execPath
  const options = ['-c', `${CONNECTIONS}`, '-d', `${seconds}`, '-m', 'POST', '-H', 'Content-Type=application/json']
  const out = await output([runtime, program, '--json', '--no-progress', ...options, '-b', BODY, url])
  const told = JSON.parse(out) as {
    requests: { average: number }
    latency: { p99: number }
    errors: number
    non2xx: number
  }
  if (told.errors + told.non2xx > 0) throw new Error(`${told.errors + told.non2xx} requests to ${url} failed.`)
  return { requestsPerSecond: told.requests.average, p99Ms: told.latency.p99, tool: 'autocannon' }
}

/** Posts at a steady rate, whatever the server does, and times each request from the moment it was due. */
export async function postSteadily(url: string, rate: number, seconds: number): Promise<{ p50: number; p99: number }> {
  const out = await output([process.execPath, join(BENCH, 'load', 'poster.ts'), url, String(rate), String(seconds)])
  return JSON.parse(out) as { p50: number; p99: number }
}

export interface Answers {
  /** How often each status was answered; `none` where there was no answer. */
  readonly answers: Readonly<Record<string, number>>
  /** Tasks that were accepted. */
  readonly tasks: number
  /** Of a batch, in ms. */
  readonly p50: number
  readonly p99: number
}

/** Posts batches of 50 at a steady rate of tasks, whatever the server does and answers. */
export async function postBatches(url: string, rate: number, seconds: number): Promise<Answers> {
  const out = await output([process.execPath, join(BENCH, 'load', 'batches.ts'), url, String(rate), String(seconds)])
  return JSON.parse(out) as Answers
}

async function output(command: string[]): Promise<string> {
  const child = Bun.spawn(command, { stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' })
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (code !== 0) throw new Error(`${command[0]} ended with ${code}: ${err.slice(-500)}`)
  return out
}
