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

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new Error('No port.')
  return address.port
}
