import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import type { Broker } from '#shared/broker/broker.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { startRedis } from './redis-server.ts'

/** A store of its own, every byte of which can be read. */
export interface DurableStore {
  readonly broker: Broker
  /** What another program says to the store; null for a store that speaks to Tasker alone. */
  readonly foreign: Redis | null
  /** Names of the files each of which holds whatever the store keeps: while the broker is open, and when it was closed. */
  readonly whole: { readonly open: readonly string[]; readonly closed: readonly string[] }
  /** The raw bytes of every file, by its name. All that was acknowledged is in them. */
  files(): Promise<Record<string, Uint8Array>>
}

export interface Durable {
  /** Opens a new, empty store; the one that was opened before is forgotten, and its broker must be closed. */
  open(options: { now: () => number }): Promise<DurableStore>
  /** Ends the store and removes its files. */
  stop(): Promise<void>
}

/** Every store that can be on a disk. */
export const durableStores: { name: string; start(): Promise<Durable> }[] = [
  { name: 'SQLite', start: startSqlite },
  { name: 'Redis', start: startDurableRedis },
]

async function startSqlite(): Promise<Durable> {
  const dirs: string[] = []
  return {
    async open({ now }) {
      const dir = tempDir()
      dirs.push(dir)
      return {
        broker: createSqliteBroker({ path: join(dir, 'tasker.db'), now }),
        foreign: null,
        // The last connection that is closed moves the log into the file.
        whole: { open: ['tasker.db-wal'], closed: ['tasker.db'] },
        files: async () => filesIn(dir),
      }
    },
    async stop() {
      for (const dir of dirs) rmSync(dir, { recursive: true })
    },
  }
}

/** A server that writes each change before it answers, and compresses nothing. */
async function startDurableRedis(): Promise<Durable> {
  const dir = tempDir()
  const args = ['--appendonly', 'yes', '--appendfsync', 'always', '--rdbcompression', 'no']
  const server = await startRedis({ dir, args })
  const foreign = new Redis(server.url)
  const journal = 'appendonlydir/appendonly.aof.1.incr.aof'
  const whole = ['dump.rdb', journal]
  return {
    async open({ now }) {
      await foreign.flushall()
      // What the stores before have written stays in the journal.
      const from = filesIn(dir)[journal]?.length ?? 0
      return {
        broker: createRedisBroker(createTcpClient({ url: server.url }), { now }),
        foreign,
        whole: { open: whole, closed: whole },
        async files() {
          await foreign.save()
          const files = filesIn(dir)
          return { ...files, [journal]: files[journal]?.subarray(from) ?? new Uint8Array() }
        },
      }
    },
    async stop() {
      foreign.disconnect()
      await server.stop()
      rmSync(dir, { recursive: true })
    },
  }
}

/** In memory where the system has files there: what matters is what is written, and syncing it to a disk would be most of the time. */
function tempDir(): string {
  return mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'tasker-durable-'))
}

function filesIn(dir: string): Record<string, Uint8Array> {
  const entries = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  return Object.fromEntries(
    entries.map(({ parentPath, name }) => {
      const path = join(parentPath, name)
      return [path.slice(dir.length + 1), readFileSync(path)]
    }),
  )
}
