import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { freePort, startProcess, type TestProcess } from '../process.ts'
import { REST_TOKEN } from '../rest-endpoint.ts'
import { startTcpProxy, type TcpProxy } from '../tcp-proxy.ts'

export type Role = 'creator' | 'manager' | 'worker' | 'real worker' | 'all' | 'rest'

/** One process of a run, which is started again each time it ends. */
export interface Member {
  readonly name: string
  readonly role: Role
  readonly store: StoreAddress['type']
  /** Where it is reached over HTTP, by role. */
  readonly urls: { creator: string; manager: string }
  /** Of the endpoint. */
  readonly restPort: number
  /** Between it and its store; null with SQLite, and on a Cluster, which tells clients where its nodes are. */
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

/** A file, Redis, the REST endpoint before it, or the nodes of a Cluster. */
export type StoreAddress =
  | { readonly type: 'sqlite' }
  | { readonly type: 'redis' | 'rest'; readonly port: number }
  | { readonly type: 'cluster'; readonly url: string }

export interface FleetOptions {
  readonly dir: string
  readonly store: StoreAddress
  readonly leaseMs: number
  readonly partitions: number
  /** A kind that its workers leave to others. */
  readonly except?: string | undefined
}

export const SQLITE_FILE = 'tasker.db'

/** Where those that reach their store in one way write down which tasks they have ended. */
export const endsFile = (dir: string, type: StoreAddress['type']): string => join(dir, `ends-${type}`)

/** Programs that are run as they are, and what they print when they work. */
const REAL: Partial<Record<Role, { file: string; ready: string }>> = {
  'real worker': { file: 'services/workers/main.ts', ready: 'Working.' },
  rest: { file: 'services/rest/main.ts', ready: 'Listening.' },
}
const FILE = Bun.fileURLToPath(new URL('./member.ts', import.meta.url))

/** Starts one process; resolves when it works. */
export async function startMember(name: string, role: Role, options: FleetOptions): Promise<Member> {
  const { dir, store, leaseMs, partitions, except = '' } = options
  const proxy = 'port' in store ? await startTcpProxy(store) : null
  const clock = join(dir, `${name}.clock`)
  writeFileSync(clock, '0')
  const [creatorPort, managerPort, restPort] = [await freePort(), await freePort(), await freePort()]
  const env = {
    ...{
      CHAOS_CLOCK: clock,
      CHAOS_STEPS: join(dir, 'steps'),
      CHAOS_ENDS: endsFile(dir, store.type),
      CHAOS_EXCEPT: except,
    },
    ...{ CREATOR_PORT: `${creatorPort}`, MANAGER_PORT: `${managerPort}` },
    ...{ TASKER_LEASE_MS: `${leaseMs}`, TASKER_PARTITIONS: `${partitions}`, WORKER_GRACE_MS: '300', LOG_LEVEL: 'info' },
    ...{ REST_PORT: `${restPort}`, REST_TOKEN },
    ...(store.type === 'sqlite' ? { TASKER_DB: join(dir, SQLITE_FILE) } : {}),
    ...(store.type === 'redis' ? { REDIS_URL: `redis://127.0.0.1:${proxy?.port}` } : {}),
    ...(store.type === 'cluster' ? { REDIS_URL: store.url, TASKER_WAIT_REPLICAS: '1' } : {}),
    ...(store.type === 'rest' ? overRest(`http://127.0.0.1:${proxy?.port}`) : {}),
    // Whoever creates a sequence says how often it may be tried; a sum has the attempts of its kind, which are few here.
    ...(role === 'real worker' ? { WORKER_KINDS: 'sequence' } : {}),
  }
  const real = REAL[role]
  const run = () => startProcess(real?.file ?? [process.execPath, FILE, role], env)
  const ready = (started: TestProcess) => started.prints(real?.ready ?? 'Ready.')
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
    ...{ name, role, store: store.type, restPort, proxy },
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

/** Whoever works over REST looks for work as often as others do: by itself it would ask less, since every command is billed. */
function overRest(url: string): Record<string, string> {
  return {
    ...{ UPSTASH_REDIS_REST_URL: url, UPSTASH_REDIS_REST_TOKEN: REST_TOKEN },
    ...{ WORKER_POLL_MS: '1000', WORKER_SWEEP_MS: '1000' },
  }
}
