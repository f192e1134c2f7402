import { join } from 'node:path'
import { BENCH } from './run.ts'

/** A process that serves, or works, until it is stopped. */
export interface Service {
  /** From the start of the process to the first answer that says it is ready. */
  readonly readyMs: number
  readonly pid: number
  stop(): Promise<void>
}

const ROOT = join(BENCH, '..')
const READY_WITHIN_MS = 30_000

/** Starts `bun <file>` (from the project's folder) and waits until `readyUrl` answers, where one is given. */
export async function startService(file: string, env: Record<string, string>, readyUrl?: string): Promise<Service> {
  const from = performance.now()
  const child = Bun.spawn([process.execPath, join(ROOT, file)], {
    cwd: ROOT,
    env: { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? '', LOG_LEVEL: 'warn', ...env },
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'inherit',
  })
  const stop = async () => {
    child.kill('SIGTERM')
    const killing = setTimeout(() => child.kill('SIGKILL'), 5_000)
    await child.exited
    clearTimeout(killing)
  }
  while (readyUrl !== undefined && !(await answers(readyUrl))) {
    if (child.exitCode !== null) throw new Error(`${file} ended with ${child.exitCode} before it was ready.`)
    if (performance.now() - from > READY_WITHIN_MS) {
      await stop()
      throw new Error(`${file} was not ready within ${READY_WITHIN_MS} ms.`)
    }
    await Bun.sleep(1)
  }
  return { readyMs: performance.now() - from, pid: child.pid, stop }
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(url)
    await response.arrayBuffer()
    return response.ok
  } catch {
    // Nobody listens yet.
    return false
  }
}
