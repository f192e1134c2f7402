import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'

/** A real process of Tasker's, run by the Bun that runs the tests. */
export interface TestProcess {
  readonly pid: number
  /** All that it printed so far, stdout and stderr together. */
  output(): string
  /** Resolves when the output contains the text; rejects with the output when the process ends before. */
  prints(text: string): Promise<void>
  kill(signal: NodeJS.Signals): void
  /** The exit code, or the signal that ended it. */
  readonly ended: Promise<number | NodeJS.Signals>
}

const started = new Set<TestProcess>()

/** Starts `bun <file>`, or another command, in the project's folder, with nothing in its environment but what is given. */
export function startProcess(program: string | string[], env: Record<string, string>): TestProcess {
  const command = typeof program === 'string' ? [process.execPath, program] : program
  const child = Bun.spawn(command, {
    cwd: new URL('../..', import.meta.url).pathname,
    env: { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? '', ...env },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
  })
  let output = ''
  let running = true
  const waiting = new Set<() => void>()
  const tell = () => {
    for (const look of waiting) look()
  }
  async function read(stream: ReadableStream<Uint8Array>) {
    const decoder = new TextDecoder()
    for await (const chunk of stream) {
      output += decoder.decode(chunk, { stream: true })
      tell()
    }
  }
  const ended = Promise.all([child.exited, read(child.stdout), read(child.stderr)]).then(() => {
    running = false
    started.delete(self)
    tell()
    return child.signalCode ?? child.exitCode ?? -1
  })
  const self: TestProcess = {
    pid: child.pid,
    output: () => output,
    prints(text) {
      return new Promise((resolve, reject) => {
        const look = () => {
          if (output.includes(text)) resolve()
          else if (!running) reject(new Error(`${command.join(' ')} ended without "${text}":\n${output}`))
          else return
          waiting.delete(look)
        }
        waiting.add(look)
        look()
      })
    },
    kill(signal) {
      child.kill(signal)
    },
    ended,
  }
  started.add(self)
  return self
}

/** Ends every process that is still there; for `afterEach`. */
export async function endProcesses(): Promise<void> {
  const all = [...started]
  for (const one of all) one.kill('SIGKILL')
  await Promise.all(all.map(({ ended }) => ended))
}

/**
 * A port that was free a moment ago. It lies below those that systems hand out for outgoing connections (from 32,768 on Linux), so that
 * no client has it when a server wants it, or wants it back: not even one that asks for that server meanwhile, which may otherwise be
 * given that very port and find itself.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000)
    const server = createServer()
    const free = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false))
      server.listen(port, '127.0.0.1', () => resolve(true))
    })
    if (!free) continue
    await new Promise((resolve) => server.close(resolve))
    return port
  }
}

/** Memory that a process has at this moment, as Linux tells it; NaN elsewhere. */
export function residentBytes(pid: number): number {
  const file = `/proc/${pid}/status`
  const status = existsSync(file) ? readFileSync(file, 'utf8') : ''
  return Number(/^VmRSS:\s*(\d+) kB/m.exec(status)?.[1]) * 1024
}
