import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePort } from './process.ts'

export type RedisServer = {
  readonly url: string
  readonly port: number
  readonly pid: number
  /** Sends the signal; resolves when the server is gone, or at once for SIGSTOP and SIGCONT, which do not end it. */
  kill(signal?: NodeJS.Signals): Promise<void>
  /** Ends the server and removes its data, unless `dir` was given. Harmless twice. */
  stop(): Promise<void>
}

export type RedisServerOptions = {
  /** A free one if left out. Give the old port to bring a killed server back. */
  readonly port?: number
  /** Added after `--save '' --appendonly no`, so `['--appendonly', 'yes']` wins. */
  readonly args?: readonly string[]
  /** Where the server keeps its data; a temporary directory if left out. */
  readonly dir?: string
}

/**
 * Starts a real Redis on 127.0.0.1 and resolves when it answers. It ends with this process, however that ends.
 * Rejects when no Redis can be had here, saying what to install, or when the server does not come up.
 */
export async function startRedis(options: RedisServerOptions = {}): Promise<RedisServer> {
  const program = findRedis()
  const attempts = options.port === undefined ? 3 : 1
  for (let attempt = 1; ; attempt++) {
    try {
      return await start(program, { ...options, port: options.port ?? (await freePort()) })
    } catch (error) {
      // Another process may have taken the port between our look and Redis's bind.
      if (attempt === attempts) throw error
    }
  }
}

type Program = 'redis-server' | 'docker'

function findRedis(): Program {
  if (Bun.which('redis-server')) return 'redis-server'
  if (process.getuid?.() === 0 && Bun.which('apt-get')) {
    console.error('Installing redis-server with apt-get: the tests need a real Redis.')
    const apt = (...args: string[]) =>
      Bun.spawnSync(['apt-get', '-qq', ...args], {
        env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
        stdout: 'ignore',
        stderr: 'ignore',
      }).success
    const install = ['install', '-y', '--no-install-recommends', 'redis-server']
    if (apt(...install) || (apt('update') && apt(...install))) return 'redis-server'
  }
  if (Bun.which('docker') && Bun.spawnSync(['docker', 'info'], { stdout: 'ignore', stderr: 'ignore' }).success)
    return 'docker'
  throw new Error(
    'The tests need a real Redis. Install it (Debian: apt-get install redis-server, macOS: brew install redis), start Docker, or set REDIS_TEST_URL to a server they may fill.',
  )
}

async function start(program: Program, options: RedisServerOptions & { readonly port: number }): Promise<RedisServer> {
  const { port } = options
  const temporary = mkdtempSync(join(tmpdir(), 'tasker-redis-'))
  const dir = options.dir ?? temporary
  const log = Bun.file(join(temporary, 'log'))
  const settings = ['--save', '', '--appendonly', 'no', ...(options.args ?? [])]
  const container = `tasker-redis-${port}`
  const command =
    program === 'redis-server'
      ? ['redis-server', '--port', `${port}`, '--bind', '127.0.0.1', '--dir', dir, ...settings]
      : // biome-ignore format: one option a line would hide the command
        ['docker', 'run', '--rm', '--name', container, '-p', `127.0.0.1:${port}:6379`, '-v', `${dir}:/data`, 'redis:7', 'redis-server', ...settings]

  // In a session of its own, so that Ctrl-C does not take the server away from tests that still clean up.
  const server = Bun.spawn(command, { stdin: 'ignore', stdout: log, stderr: log, detached: true })
  const killCommand = (signal: string) =>
    program === 'redis-server' ? `kill -${signal} ${server.pid}` : `docker kill -s ${signal} ${container}`

  // Exit handlers do not run on SIGKILL, and not at all at the end of `bun test`. A closed pipe is always noticed.
  const guard = Bun.spawn(['sh', '-c', `read _; ${killCommand('KILL')}; rm -rf "$1"`, 'guard', temporary], {
    stdin: 'pipe',
    stdout: 'ignore',
    stderr: 'ignore',
    detached: true,
  })
  server.unref()
  guard.unref()

  const kill = async (signal: NodeJS.Signals = 'SIGKILL'): Promise<void> => {
    if (server.exitCode !== null || server.signalCode !== null) return
    if (program === 'redis-server') server.kill(signal)
    else Bun.spawnSync(['sh', '-c', killCommand(signal)])
    if (signal !== 'SIGSTOP' && signal !== 'SIGCONT') await server.exited
  }
  const stop = async (): Promise<void> => {
    await kill()
    guard.kill()
    rmSync(temporary, { recursive: true, force: true })
  }

  if (await answers(port, server.exited)) return { url: `redis://127.0.0.1:${port}`, port, pid: server.pid, kill, stop }
  const told = await log.text()
  await stop()
  throw new Error(`Redis did not come up on port ${port}:\n${told.slice(-2000)}`)
}

async function answers(port: number, exited: Promise<unknown>): Promise<boolean> {
  const deadline = Date.now() + 60_000
  let ended = false
  void exited.then(() => {
    ended = true
  })
  while (!ended && Date.now() < deadline) {
    if (await ping(port)) return !ended
    await Bun.sleep(10)
  }
  return false
}

/** A server that still loads its data answers PING with an error, and counts as not up. */
function ping(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write('PING\r\n'))
    socket.setTimeout(1000, () => socket.destroy())
    socket.once('data', (data) => {
      resolve(data.toString().startsWith('+PONG'))
      socket.destroy()
    })
    socket.once('error', () => socket.destroy())
    socket.once('close', () => resolve(false))
  })
}
