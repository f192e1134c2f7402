import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { freePort, startProcess, type TestProcess } from '../process.ts'
import { startTcpProxy, type TcpProxy } from '../tcp-proxy.ts'

export type Role = 'creator' | 'manager' | 'worker' | 'real worker' | 'all'

/** One process of a run, which is started again each time it ends. */
export interface Member {
  readonly name: string
  readonly role: Role
  /** Where it is reached over HTTP, by role. */
  readonly urls: { creator: string; manager: string }
  /** Between it and Redis; null with SQLite. */
  readonly proxy: TcpProxy | null
  /** Whether nothing is being done to it: a fault waits for no other. */
  readonly idle: boolean
  /** Ends it with the signal, and starts it again after `downMs`. */
  restart(signal: 'SIGKILL' | 'SIGTERM', downMs: number): Promise<void>
  pause(forMs: number): Promise<void>
  setClock(offsetMs: number): void
  output(): string
  stop(): Promise<void>
}

export interface FleetOptions {
  readonly dir: string
  readonly redisPort: number | null
  readonly leaseMs: number
  readonly partitions: number
}

export const SQLITE_FILE = 'tasker.db'

const FILE = Bun.fileURLToPath(new URL('./member.ts', import.meta.url))

/** Starts one process; resolves when it works. */
export async function startMember(name: string, role: Role, options: FleetOptions): Promise<Member> {
  const { dir, redisPort, leaseMs, partitions } = options
  const proxy = redisPort === null ? null : await startTcpProxy({ port: redisPort })
  const clock = join(dir, `${name}.clock`)
  writeFileSync(clock, '0')
  const [creatorPort, managerPort] = [await freePort(), await freePort()]
  const env = {
    ...{ CHAOS_CLOCK: clock, CHAOS_STEPS: join(dir, 'steps') },
    ...{ CREATOR_PORT: `${creatorPort}`, MANAGER_PORT: `${managerPort}` },
    ...{ TASKER_LEASE_MS: `${leaseMs}`, TASKER_PARTITIONS: `${partitions}`, WORKER_GRACE_MS: '300', LOG_LEVEL: 'info' },
    ...(proxy ? { REDIS_URL: `redis://127.0.0.1:${proxy.port}` } : { TASKER_DB: join(dir, SQLITE_FILE) }),
    // Whoever creates a sequence says how often it may be tried; a sum has the attempts of its kind, which are few here.
    ...(role === 'real worker' ? { WORKER_KINDS: 'sequence' } : {}),
  }
  const run = () =>
    role === 'real worker'
      ? startProcess('services/workers/main.ts', env)
      : startProcess([process.execPath, FILE, role], env)
  const ready = (started: TestProcess) => started.prints(role === 'real worker' ? 'Working.' : 'Ready.')
  let busy = false
  let current = run()
  let before = ''
  await ready(current)

  /** Does one thing at a time to it; what comes meanwhile is left out. */
  async function alone(work: () => Promise<void>): Promise<void> {
    if (busy) return
    busy = true
    await work()
    busy = false
  }

  return {
    ...{ name, role, proxy },
    urls: { creator: `http://127.0.0.1:${creatorPort}`, manager: `http://127.0.0.1:${managerPort}` },
    get idle() {
      return !busy
    },
    restart: (signal, downMs) =>
      alone(async () => {
        current.kill(signal)
        await current.ended
        before += current.output()
        await Bun.sleep(downMs)
        current = run()
        await ready(current)
      }),
    pause: (forMs) =>
      alone(async () => {
        current.kill('SIGSTOP')
        await Bun.sleep(forMs)
        current.kill('SIGCONT')
      }),
    setClock: (offsetMs) => writeFileSync(clock, `${Math.round(offsetMs)}`),
    output: () => before + current.output(),
    async stop() {
      current.kill('SIGKILL')
      await current.ended
      await proxy?.close()
    },
  }
}
