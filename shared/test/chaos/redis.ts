import { readdirSync, readFileSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { kindKeys, partitionKeys } from '#shared/broker/redis/keys.ts'
import { idsOfEntry } from '#shared/broker/redis/wire.ts'
import { readEnvelope } from '#shared/task/record.ts'
import { FINAL_STATES, type FinalState } from '#shared/task/task.ts'
import { startRedis } from '../redis-server.ts'
import { wholeUntil } from './journal.ts'
import { chaosContracts } from './kinds.ts'
import { type Monitor, newSightings, startMonitor } from './monitor.ts'
import type { Dump, Life } from './recording.ts'
import type { Store } from './store.ts'

/** A Redis that is killed and comes back on its files. */
export interface MortalRedis extends Store {
  readonly port: number
  /** Kills that came in the middle of a write. */
  torn: number
  /** Kills it. With `lostMs` what it wrote within the last so many ms before is gone too. */
  kill(lostMs: number | null): Promise<void>
  /** Starts it on its files, looks at what is there, and follows it from then on. */
  start(): Promise<void>
  pause(paused: boolean): Promise<void>
}

/** With `everysec` Redis promises all but about the last second. */
const EVERYSEC_MS = 1_000

export async function createMortalRedis(options: {
  dir: string
  port: number
  aof: 'everysec' | 'always'
  partitions: number
}): Promise<MortalRedis> {
  const { dir, port, aof, partitions } = options
  const args = ['--appendonly', 'yes', '--appendfsync', aof, '--auto-aof-rewrite-percentage', '0']
  const lives: Life[] = []
  let server: Awaited<ReturnType<typeof startRedis>> | undefined
  let monitor: Monitor | undefined
  let sizes: { at: number; size: number }[] = []
  let sampler: Timer | undefined

  async function dump(): Promise<Dump> {
    const redis = new Redis({ port, host: '127.0.0.1', maxRetriesPerRequest: 0 })
    redis.on('error', () => undefined)
    try {
      return await dumpOf(redis, partitions)
    } finally {
      redis.disconnect()
    }
  }

  const self: MortalRedis = {
    ...{ port, lives, torn: 0, dump },
    async start() {
      server = await startRedis({ dir, port, args })
      const start = await dump()
      const sightings = newSightings()
      monitor = await startMonitor(port, () => sightings)
      lives.push({ start, ...sightings, safeUntil: null, crashedAt: null })
      sizes = []
      const sample = () => sizes.push({ at: Date.now(), size: statSync(journal(dir)).size })
      sample()
      sampler = setInterval(sample, 20)
    },
    async kill(lostMs) {
      clearInterval(sampler)
      const crashedAt = Date.now()
      await server?.kill('SIGKILL')
      await server?.stop()
      await monitor?.ended
      const life = lives.at(-1)
      if (!life) return
      const file = journal(dir)
      const bytes = readFileSync(file)
      const { size = 0 } = sizes.findLast(({ at }) => at <= crashedAt - (lostMs ?? 0)) ?? sizes[0] ?? {}
      const whole = wholeUntil(bytes, lostMs === null ? bytes.length : size)
      if (lostMs === null && whole < bytes.length) self.torn++
      truncateSync(file, whole)
      Object.assign(life, { crashedAt, safeUntil: aof === 'always' ? Infinity : crashedAt - EVERYSEC_MS })
    },
    async pause(paused) {
      await server?.kill(paused ? 'SIGSTOP' : 'SIGCONT')
    },
    async stop() {
      clearInterval(sampler)
      monitor?.close()
      await server?.stop()
    },
  }
  await self.start()
  return self
}

/** The file that commands are appended to. */
function journal(dir: string): string {
  const folder = join(dir, 'appendonlydir')
  const name = readdirSync(folder)
    .filter((file) => file.endsWith('.incr.aof'))
    .toSorted()
    .at(-1)
  if (name === undefined) throw new Error(`Redis keeps no journal in ${folder}.`)
  return join(folder, name)
}

export function nothingFound(): Found {
  return { final: new Map(), live: new Map(), ended: new Map(), queued: new Set(), left: [] }
}

async function dumpOf(redis: Redis, partitions: number): Promise<Dump> {
  const all = nothingFound()
  for (let i = 0; i < partitions; i++) await dumpPartition(redis, partitions > 1 ? `{${i}}:` : '', all)
  return { at: Date.now(), ...all }
}

export interface Found {
  final: Map<string, string>
  live: Map<string, string>
  ended: Map<string, FinalState[]>
  queued: Set<string>
  left: string[]
}

export async function dumpPartition(
  redis: Redis,
  prefix: string,
  { final, live, ended, queued, left }: Found,
): Promise<void> {
  const [liveKey = '', finalKey = '', pendingKey = '', , , , leasesKey = ''] = partitionKeys(prefix)
  const values = await redis.hgetall(liveKey)
  for (const [id, value] of Object.entries(values)) {
    // Beside the value of a running task stands who holds it.
    if (!id.endsWith('\n')) live.set(id, values[`${id}\n`] === undefined ? value : value.replace(/^queued/, 'running'))
  }
  for (const [id, record] of Object.entries(await redis.hgetall(finalKey))) final.set(id, record)
  for (const [id, count] of Object.entries(await redis.hgetall(pendingKey))) left.push(`${id} has ${count} pending`)
  for (const lease of await redis.hkeys(leasesKey)) left.push(`${leasesKey}: ${lease}`)
  for (const kind of Object.keys(chaosContracts)) {
    const keys = kindKeys(prefix, kind)
    const [broken = '', counts = ''] = keys.slice(9)
    for (const key of keys.slice(0, 3)) {
      for (const text of await redis.lrange(key, 0, -1)) {
        left.push(`${key}: ${text}`)
        queued.add(readEnvelope(text)?.task_id ?? text)
      }
    }
    for (const key of keys.slice(3, 6)) {
      for (const id of await redis.zrange(key, '0', '-1')) left.push(`${key}: ${id}`)
    }
    for (const [i, state] of FINAL_STATES.entries()) {
      for (const id of (await redis.zrange(keys[6 + i] ?? '', '0', '-1')).flatMap(idsOfEntry))
        ended.set(id, [...(ended.get(id) ?? []), state])
    }
    if ((await redis.llen(broken)) > 0) left.push(`${broken} is not empty`)
    const dropped = (await redis.hget(counts, 'dropped')) ?? '0'
    if (dropped !== '0') left.push(`${counts} has ${dropped} dropped`)
  }
}
