import { readdirSync, readFileSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { kindKeys, partitionKeys } from '#shared/broker/redis/keys.ts'
import { readEnvelope } from '#shared/task/record.ts'
import { FINAL_STATES, type FinalState } from '#shared/task/task.ts'
import { startRedis } from '../redis-server.ts'
import { wholeUntil } from './journal.ts'
import { chaosContracts } from './kinds.ts'
import { type Monitor, startMonitor } from './monitor.ts'
import type { Dump, Life } from './recording.ts'

/** A Redis that is killed and comes back on its files. */
export interface MortalRedis {
  readonly port: number
  readonly lives: Life[]
  /** Kills that came in the middle of a write. */
  torn: number
  /** Kills it. With `lostMs` what it wrote within the last so many ms before is gone too. */
  kill(lostMs: number | null): Promise<void>
  /** Starts it on its files, looks at what is there, and follows it from then on. */
  start(): Promise<void>
  pause(paused: boolean): Promise<void>
  /** All that it holds now. */
  dump(): Promise<Dump>
  stop(): Promise<void>
}

/** With `everysec` Redis promises all but about the last second. */
const EVERYSEC_MS = 1_000

export async function createMortalRedis(options: {
  dir: string
  port: number
  aof: 'everysec' | 'always'
}): Promise<MortalRedis> {
  const { dir, port, aof } = options
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
      return await dumpOf(redis)
    } finally {
      redis.disconnect()
    }
  }

  const self: MortalRedis = {
    ...{ port, lives, torn: 0, dump },
    async start() {
      server = await startRedis({ dir, port, args })
      const start = await dump()
      monitor = await startMonitor(port)
      const { commits, stored } = monitor
      lives.push({ start, commits, stored, safeUntil: null, crashedAt: null })
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

async function dumpOf(redis: Redis): Promise<Dump> {
  const [liveKey = '', finalKey = '', pendingKey = ''] = partitionKeys('')
  const final = new Map(Object.entries(await redis.hgetall(finalKey)))
  const live = new Map(Object.entries(await redis.hgetall(liveKey)))
  const left: string[] = []
  const queued = new Set<string>()
  const ended = new Map<string, FinalState[]>()
  for (const [id, count] of Object.entries(await redis.hgetall(pendingKey))) left.push(`${id} has ${count} pending`)
  for (const kind of Object.keys(chaosContracts)) {
    const keys = kindKeys('', kind)
    for (const key of keys.slice(0, 3)) {
      for (const text of await redis.lrange(key, 0, -1)) {
        left.push(`${key}: ${text}`)
        queued.add(readEnvelope(text)?.task_id ?? text)
      }
    }
    for (const key of keys.slice(3, 6)) for (const id of await redis.zrange(key, '0', '-1')) left.push(`${key}: ${id}`)
    for (const [i, state] of FINAL_STATES.entries()) {
      for (const id of await redis.zrange(keys[6 + i] ?? '', '0', '-1'))
        ended.set(id, [...(ended.get(id) ?? []), state])
    }
    const [broken = '', dropped = ''] = keys.slice(9)
    if ((await redis.llen(broken)) > 0) left.push(`${broken} is not empty`)
    const count = await redis.get(dropped)
    if (count !== null && count !== '0') left.push(`${dropped} is ${count}`)
  }
  return { at: Date.now(), final, live, ended, queued, left }
}
