import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { rootOf } from '#shared/task/task.ts'
import { freePort } from '../process.ts'
import { check, type Verdict } from './check.ts'
import { createMortalCluster, type MortalCluster } from './cluster.ts'
import { readEnds } from './ends.ts'
import {
  endsFile,
  type FleetOptions,
  type Member,
  type Role,
  SQLITE_FILE,
  type StoreAddress,
  startMember,
} from './fleet.ts'
import { type Fault, type FaultType, planCreations, planFaults } from './plan.ts'
import { createRandom } from './random.ts'
import { EMPTY_DUMP, type Recording } from './recording.ts'
import { createMortalRedis, type MortalRedis } from './redis.ts'
import { watchSqlite } from './sqlite.ts'
import type { Store } from './store.ts'
import { startTraffic } from './traffic.ts'

/** A SQLite file, a Redis by how it syncs its journal, or a Cluster whose replicas are waited for. */
export type StoreKind = 'sqlite' | 'everysec' | 'always' | 'cluster'

export interface ChaosOptions {
  readonly seed: number
  /** How long tasks are created and faults happen. */
  readonly seconds: number
  /** Tasks in all, children included. */
  readonly tasks: number
  readonly store: StoreKind
  /** Of the layout in Redis; 1 when left out. */
  readonly partitions?: number
  readonly leaseMs: number
  readonly roles: readonly Role[]
  /** Of those that reach Redis over the REST endpoint, which is a member as well; none when left out. */
  readonly restRoles?: readonly Role[] | undefined
  readonly faultEveryMs: number
  /** All that came to pass in the processes is printed as it happens. */
  readonly verbose?: boolean
  /** Only these faults, to find out which one matters. */
  readonly types?: readonly string[] | undefined
}

export interface ChaosReport extends Verdict {
  readonly options: Omit<ChaosOptions, 'verbose'>
  readonly faults: Partial<Record<FaultType, number>>
  readonly acknowledged: number
  /** Roots that were stored though nobody was told so: their creators died, or had no answer. */
  readonly unacknowledged: number
  /** Final records at the end, those of children included. */
  readonly ended: number
  /** Answers to creations that were no 201. */
  readonly refused: Record<string, number>
  /** Creations that creators over REST acknowledged, and tasks that workers over REST ended. */
  readonly overRest: { acknowledged: number; ended: number }
  readonly seen: number
  readonly crashes: number
  /** Crashes in the middle of a write. */
  readonly torn: number
  /** Milliseconds from the last fault until nothing was left to do. */
  readonly settledMs: number
}

/** How far a clock leaps: much further than a lease, and less than results are kept. */
const LEAP_MS = 3_600_000

const ANY = ['kill', 'long pause', 'terminate', 'pause', 'clock', 'leap ahead', 'leap back'] as const
const NETWORK = ['cut', 'lose answer', 'partition'] as const
/** What can happen on each store. */
export const FAULTS: Record<StoreKind, readonly FaultType[]> = {
  sqlite: ANY,
  everysec: [...ANY, ...NETWORK, 'redis kill', 'redis pause', 'redis power cut'],
  always: [...ANY, ...NETWORK, 'redis kill', 'redis pause'],
  cluster: [...ANY, 'cut', 'redis pause', 'primary kill', 'replica kill', 'fail-over', 'slot move'],
}

/** Those whose clock can be moved. */
const CLOCKED: readonly Role[] = ['creator', 'manager', 'worker', 'all']

/** Whom a fault may concern; everybody when it is not listed. */
const ROLES: Partial<Record<FaultType, readonly Role[]>> = {
  'long pause': ['worker', 'real worker', 'all'],
  ...{ clock: CLOCKED, 'leap ahead': CLOCKED, 'leap back': CLOCKED },
}

/** Runs real processes on a real store, hurts them, lets them come to rest, and judges what was seen. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const { verbose = false, ...told } = options
  const { seed, seconds, tasks, leaseMs, roles, restRoles = [], partitions = 1 } = told
  const random = createRandom(seed)
  const spanMs = seconds * 1000
  const dir = mkdtempSync(join(tmpdir(), 'tasker-chaos-'))
  const members: Member[] = []
  const stops: (() => Promise<void>)[] = []
  try {
    const cluster = told.store === 'cluster' ? await createMortalCluster({ partitions }) : null
    if (cluster) stops.push(() => cluster.stop())
    const redis =
      told.store === 'sqlite' || told.store === 'cluster'
        ? null
        : await createMortalRedis({ dir, port: await freePort(), aof: told.store, partitions })
    if (redis) stops.push(() => redis.stop())
    const add = async (role: Role, address: StoreAddress) => {
      // Those over REST have something of their own to do, however slow they are.
      const except = address.type === 'redis' && restRoles.includes('worker') ? 'flaky' : undefined
      const fleet: FleetOptions = { dir, store: address, leaseMs, partitions, except }
      const member = await startMember(`${role} ${members.length}`, role, fleet)
      members.push(member)
      return member
    }
    const own: StoreAddress = cluster
      ? { type: 'cluster', url: cluster.url }
      : redis
        ? { type: 'redis', port: redis.port }
        : { type: 'sqlite' }
    for (const role of roles) await add(role, own)
    if (restRoles.length > 0) {
      const { restPort } = await add('rest', own)
      for (const role of restRoles) await add(role, { type: 'rest', port: restPort })
    }
    const store: Store = cluster ?? redis ?? watchSqlite(join(dir, SQLITE_FILE), endsFile(dir, 'sqlite'))
    if (!cluster && !redis) stops.push(() => store.stop())
    const recording: Recording = {
      ...{ acknowledged: [], cancellations: [], seen: [], ran: [], lives: store.lives, end: EMPTY_DUMP },
    }
    const having = (...wanted: Role[]) => members.filter(({ role }) => wanted.includes(role))
    const traffic = startTraffic({
      creations: planCreations(random.fork('creations'), { tasks, spanMs: spanMs * 0.9, leaseMs }),
      ...{ recording, creators: having('creator', 'all'), managers: having('manager', 'all') },
      random: random.fork('traffic'),
      untilMs: spanMs + 30_000,
    })
    const types = FAULTS[told.store].filter((type) => options.types?.includes(type) ?? true)
    const plan = planFaults(random.fork('faults'), { spanMs, everyMs: options.faultEveryMs, leaseMs, types })
    const faults = await inflict(plan, { members, redis, cluster, leaseMs, verbose })
    const over = performance.now()
    // What was put off by a clock that was ahead is due when that time has come for all; those that know no other clock are left behind.
    if (faults['leap ahead']) {
      for (const member of members) {
        if (CLOCKED.includes(member.role)) member.setClock(LEAP_MS)
        else if (member.role === 'real worker') await member.stop()
      }
    }
    await traffic.created
    await atRest(store, leaseMs)
    const settledMs = Math.round(performance.now() - over)
    await traffic.stop()
    recording.end = await store.dump()
    recording.ran.push(...readSteps(join(dir, 'steps')))
    const acknowledged = new Set(recording.acknowledged.map(({ id }) => id))
    return {
      options: told,
      faults,
      acknowledged: acknowledged.size,
      unacknowledged: [...recording.end.ended.keys()].filter((id) => id === rootOf(id) && !acknowledged.has(id)).length,
      ended: recording.end.ended.size,
      refused: traffic.refused.status,
      overRest: { acknowledged: traffic.acknowledged.rest, ended: readEnds(endsFile(dir, 'rest')).size },
      seen: recording.seen.length,
      crashes: store.lives.filter(({ crashedAt }) => crashedAt !== null).length,
      torn: redis?.torn ?? 0,
      settledMs,
      ...check(recording),
    }
  } finally {
    await Promise.all(members.map((member) => member.stop()))
    if (verbose) for (const member of members) console.log(`--- ${member.name}\n${member.output()}`)
    for (const stop of stops) await stop()
    rmSync(dir, { recursive: true, force: true })
  }
}

/** Lets the faults happen, each at its time, and resolves when all have passed. */
async function inflict(
  plan: readonly Fault[],
  {
    members,
    redis,
    cluster,
    leaseMs,
    verbose,
  }: {
    members: readonly Member[]
    redis: MortalRedis | null
    cluster: MortalCluster | null
    leaseMs: number
    verbose: boolean
  },
): Promise<Partial<Record<FaultType, number>>> {
  const begun = performance.now()
  const counts: Partial<Record<FaultType, number>> = {}
  const under: Promise<void>[] = []
  let redisFaults = Promise.resolve()
  let redisDead = false
  for (const fault of plan) {
    await Bun.sleep(Math.max(0, fault.at - (performance.now() - begun)))
    let happens = start(fault)
    while (happens === null && fault.certain) {
      await Bun.sleep(20)
      happens = start(fault)
    }
    if (happens === null) continue
    counts[fault.type] = (counts[fault.type] ?? 0) + 1
    if (verbose) console.log(`${Date.now()} ${JSON.stringify(fault)}`)
    under.push(happens)
  }
  await Promise.all(under)
  for (const member of members) member.setClock(0)
  return counts

  /** Null when nobody whom it may concern is up. */
  function start(fault: Fault): Promise<void> | null {
    const { type, target, forMs, amount } = fault
    const onCluster = cluster && ofCluster(cluster, fault)
    if (onCluster) {
      redisFaults = redisFaults.then(() => withinLimit(onCluster(), `${type} of partition ${target}`))
      return redisFaults
    }
    if (type.startsWith('redis ')) {
      const lostMs = type === 'redis power cut' ? Math.round(((amount + 1) / 2) * 900) : null
      // One after the other: each of them comes to pass.
      redisFaults = redisFaults.then(() => (type === 'redis pause' ? pauseRedis(forMs) : killRedis(forMs, lostMs)))
      return redisFaults
    }
    const roles = ROLES[type]
    const able = members.filter(({ idle, role }) => idle && (roles?.includes(role) ?? true))
    const member = able[target % able.length]
    if (!member) return null
    if (type === 'kill') return member.restart('SIGKILL', forMs)
    if (type === 'terminate') return member.restart('SIGTERM', forMs)
    if (type === 'pause' || type === 'long pause') return member.pause(forMs)
    if (type === 'leap ahead') return leap(member, LEAP_MS, forMs)
    if (type === 'leap back') return leap(member, -LEAP_MS, forMs)
    if (type === 'clock') member.setClock((amount * leaseMs) / 6)
    if (type === 'cut') member.proxy?.cut()
    if (type === 'lose answer') member.proxy?.loseNextAnswer()
    return type === 'partition' ? partition(member, forMs) : Promise.resolve()
  }

  /** What is done to a Cluster itself. */
  function ofCluster(nodes: MortalCluster, { type, target, forMs, amount }: Fault): (() => Promise<void>) | null {
    if (type === 'primary kill') return () => nodes.killPrimary(target, forMs)
    if (type === 'replica kill') return () => nodes.killReplica(target, forMs)
    if (type === 'fail-over') return () => nodes.failOver(target)
    if (type === 'slot move') return () => nodes.moveSlot(target, Math.round((amount + 1) * 500))
    if (type === 'cut') return () => nodes.cut(target)
    return type === 'redis pause' ? () => nodes.pause(target, forMs) : null
  }

  async function leap(member: Member, offsetMs: number, forMs: number): Promise<void> {
    member.setClock(offsetMs)
    await Bun.sleep(forMs)
    member.setClock(0)
  }

  async function partition({ proxy }: Member, forMs: number): Promise<void> {
    proxy?.refuse(true)
    proxy?.cut()
    await Bun.sleep(forMs)
    if (!redisDead) proxy?.refuse(false)
  }

  async function pauseRedis(forMs: number): Promise<void> {
    await redis?.pause(true)
    await Bun.sleep(forMs)
    await redis?.pause(false)
  }

  /** Nobody gets to the new one before it has been looked at. */
  async function killRedis(downMs: number, lostMs: number | null): Promise<void> {
    redisDead = true
    for (const { proxy } of members) proxy?.refuse(true)
    await redis?.kill(lostMs)
    await Bun.sleep(downMs)
    await redis?.start()
    redisDead = false
    for (const { proxy } of members) proxy?.refuse(false)
  }
}

/** How long a fault of a Cluster may take to be over, in ms: it waits until the Cluster is whole before and after. */
const FAULT_LIMIT_MS = 120_000

async function withinLimit(fault: Promise<void>, what: string): Promise<void> {
  let timer: Timer | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`The ${what} was not over after ${FAULT_LIMIT_MS} ms.`)), FAULT_LIMIT_MS)
  })
  await Promise.race([fault, late]).finally(() => clearTimeout(timer))
}

/** Waits until nothing is live and nothing is queued. Gives up when for long nothing has changed. */
async function atRest(store: Store, leaseMs: number) {
  const patienceMs = 3 * leaseMs + 10_000
  let before = ''
  let changedAt = performance.now()
  for (;;) {
    const dump = await store.dump()
    if (dump.live.size === 0 && dump.left.length === 0) return dump
    const now = `${dump.final.size} ${[...dump.live.values()].map((value) => value.slice(0, 40)).join()}`
    if (now !== before) changedAt = performance.now()
    before = now
    if (performance.now() - changedAt > patienceMs) return dump
    await Bun.sleep(100)
  }
}

function readSteps(file: string): Recording['ran'] {
  if (!existsSync(file)) return []
  const lines = readFileSync(file, 'utf8').split('\n')
  return lines.flatMap((line) => (line === '' ? [] : [JSON.parse(line) as Recording['ran'][number]]))
}
