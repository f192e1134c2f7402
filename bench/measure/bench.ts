import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { startCluster } from '../../shared/test/redis-cluster.ts'
import { startRedis } from '../../shared/test/redis-server.ts'
import { startRestEndpoint } from '../../shared/test/rest-endpoint.ts'
import { contestants, type Entry, entryOf } from '../contestants/contestants.ts'
import { type Snapshot, snapshot } from './redis.ts'
import { BENCH, findPython, type Mark, type Run, runFolder, runProcess } from './run.ts'
import { environmentOf } from './setting.ts'

export interface Options {
  readonly quick: boolean
  /** Tasks of a run, for a try; null: as each scenario says. */
  readonly n: number | null
  readonly rounds: number
  /** Null: all. */
  readonly peers: readonly string[] | null
}

/** What scenarios stand on: a Redis, a REST endpoint, and runs of contestants on them. */
export interface Bench {
  readonly options: Options
  readonly redisUrl: string
  readonly redis: Redis
  /** Tasks of a run: the full number, or the quick one. */
  size(full: number, quick: number): number
  /** Those of the named contestants that can run here and were asked for. */
  entries(names?: readonly string[]): Entry[]
  /** Contestants that cannot run here, and why. */
  readonly skipped: readonly { entry: Entry; reason: string }[]
  /** Runs bodies one after the other, each in a process of its own, on one store that is empty before the first; gives the last one's answer. */
  run(entry: Entry, phases: readonly (readonly [body: string, n: number])[], load?: number): Promise<Run>
  /** Empties Redis. */
  flush(): Promise<void>
  snapshot(): Promise<Snapshot>
  say(text: string): void
  close(): Promise<void>
}

export async function openBench(options: Options): Promise<Bench> {
  mkdirSync(join(BENCH, 'results'), { recursive: true })
  const server = await startRedis()
  const redis = new Redis(server.url)
  const endpoint = await startRestEndpoint(server.url)
  const cluster = contestants.some((entry) => entry.onCluster && asked(entry, options.peers))
    ? await startCluster()
    : null
  const skipped = contestants.flatMap((entry) => {
    const reason = reasonToSkip(entry)
    return reason && asked(entry, options.peers) ? [{ entry, reason }] : []
  })
  async function flush(): Promise<void> {
    await redis.flushall()
    for (const node of cluster?.nodes ?? []) {
      if ((await node.redis.info('replication')).includes('role:master')) await node.redis.flushall()
    }
  }

  return {
    options,
    redisUrl: server.url,
    redis,
    skipped,
    size: (full, quick) => options.n ?? (options.quick ? quick : full),
    entries(names = contestants.map(({ name }) => name)) {
      return names
        .map(entryOf)
        .filter((entry) => asked(entry, options.peers) && !skipped.some((one) => one.entry === entry))
    },
    async run(entry, phases, load) {
      await flush()
      const folder = runFolder()
      const rest = { url: endpoint.url, token: endpoint.token }
      const env = environmentOf({ redisUrl: server.url, rest, clusterUrl: cluster?.url ?? '', dir: folder.path }, load)
      const mark = async () => ({ ...(await snapshot(redis)), bill: await endpoint.bill() })
      try {
        let last: Omit<Run, 'ends'> | undefined
        const ends: Mark[] = []
        for (const [body, n] of phases) {
          last = await runProcess({ entry, body, n, env, mark })
          // Redis frees what it kept for the process's connections.
          await Bun.sleep(200)
          ends.push(await mark())
        }
        if (!last) throw new Error('There is nothing to run.')
        return { ...last, ends }
      } finally {
        folder.remove()
      }
    },
    flush,
    snapshot: () => snapshot(redis),
    say: (text) => console.log(text),
    async close() {
      await endpoint.stop()
      redis.disconnect()
      await server.stop()
      await cluster?.stop()
    },
  }
}

function asked(entry: Entry, peers: readonly string[] | null): boolean {
  if (entry.onCluster) return peers?.includes(entry.name) ?? false
  return !entry.peer || peers === null || peers.includes(entry.name)
}

function reasonToSkip({ python }: Entry): string | null {
  if (!python || findPython(python.modules)) return null
  return `no Python here has ${python.modules.join(' and ')} (Debian: apt-get install ${python.debian})`
}
