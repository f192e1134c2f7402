import type { Broker } from '#shared/broker/broker.ts'
import { retryTask } from '#shared/broker/retry.ts'
import { cancelTree } from '#shared/broker/tree.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { readRecord } from '#shared/task/record.ts'
import { childId, encodeEnvelope, type FinalRecord } from '#shared/task/task.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { createWorker, type Worker } from '#shared/worker/worker.ts'
import { contracts, createImplementations, program, type World } from './handlers.ts'
import { contradiction } from './oracle.ts'
import type { Program } from './program.ts'

const LEASE_MS = 1_000
const ROOT = 'root'
/** Turns that a scene may take: what takes more hangs. */
const MAX_ROUNDS = 1_500

/** Random numbers from 0 to 1, from a seed. */
function randomOf(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

/** Runs one program on a store while workers die, forget, and take over from each other. Returns what is wrong, or null. */
export async function play(
  open: (options: { now: () => number }) => Broker,
  body: Program,
  seed: number,
): Promise<string | null> {
  const random = randomOf(seed)
  const chance = (one: number) => random() * one < 1
  const clock = manualClock()
  const broker = open({ now: clock.now })
  const world: World = { clock, executions: [], runs: new Map() }
  const deps = { broker, contracts, now: clock.now }
  // One scene in three has no faults but those of its program.
  const isRough = !chance(3)
  try {
    const envelope = encodeEnvelope({ task_id: ROOT, kind: program.kind, payload: { body, of: 'start' } })
    await broker.enqueue([{ id: ROOT, kind: program.kind, priority: 'normal', envelope }])
    const workers: Mortal[] = []
    let isRetried = false
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const record = await recordOf(broker, ROOT)
      if (record) {
        if (record.status === undefined) {
          return (await judge(broker, record, body, world)) ?? (isRetried ? null : changedMind(world))
        }
        if (record.error?.type === 'history_mismatch' || record.error?.type === 'outside_wait') return record.result
        clock.advance(1)
        await retryTask(deps, ROOT)
        isRetried = true
      }
      if (isRough && chance(40)) await cancelTree(deps, ROOT).catch(() => undefined)
      if (workers.length === 0 || chance(3)) {
        workers.push(
          new Mortal(broker, clock, world, random, isRough && chance(2) ? 1 + Math.floor(random() * 12) : null),
        )
      }
      const worker = workers[Math.floor(random() * workers.length)]
      if (!worker) continue
      await worker.drain(chance(3) ? {} : { maxTasks: 1 + Math.floor(random() * 3) })
      if (worker.isDead) {
        workers.splice(workers.indexOf(worker), 1)
        clock.advance(LEASE_MS)
      }
      // One that is dropped while it lives takes its parked runs along.
      if (workers.length > 1 && chance(4)) workers.shift()
      clock.advance(Math.floor(random() * 15))
    }
    const [stored] = await broker.get([ROOT])
    return `It does not come to an end: ${JSON.stringify(stored)}`
  } finally {
    await broker.close()
  }
}

/** A worker that dies at one of its calls: before the store has acted, or after. */
class Mortal {
  isDead = false
  readonly #worker: Worker
  readonly #clock: ManualClock
  readonly #death = Promise.withResolvers<void>()

  constructor(broker: Broker, clock: ManualClock, world: World, random: () => number, callsToLive: number | null) {
    this.#clock = clock
    let left = callsToLive ?? Number.POSITIVE_INFINITY
    const never = new Promise<never>(() => undefined)
    const die = () => {
      this.isDead = true
      this.#death.resolve()
      return never
    }
    const mortal = <Args extends unknown[], T>(call: (...args: Args) => Promise<T>) => {
      return async (...args: Args): Promise<T> => {
        if (this.isDead) return never
        if (--left > 0) return call(...args)
        if (random() < 0.5) return die()
        const answer = call(...args)
        await answer.catch(() => undefined)
        return die()
      }
    }
    const { claim, settle, get, extend } = broker
    this.#worker = createWorker({
      broker: { ...broker, claim: mortal(claim), settle: mortal(settle), get: mortal(get), extend: mortal(extend) },
      ...{ clock, random, implementations: createImplementations(world), keyring: null, log: silentLog },
      ...{ leaseMs: LEASE_MS, pollMs: 10, concurrency: 1 + Math.floor(random() * 4) },
    })
  }

  /** Drains while time goes on, until it is done or dies. */
  async drain(limits: { maxTasks?: number }): Promise<void> {
    let isDone = false
    const drained = this.#worker.drain(limits).finally(() => {
      isDone = true
    })
    drained.catch(() => undefined)
    for (let turns = 1; !isDone && !this.isDead; turns++) {
      await nextTurn()
      if (turns % 4 === 0) this.#clock.advance(1)
    }
    if (!this.isDead) await drained
  }
}

async function judge(broker: Broker, record: FinalRecord, body: Program, world: World): Promise<string | null> {
  const wrong = contradiction(body, 'start', JSON.parse(record.result), world.executions)
  if (wrong) return wrong
  const labels = await labelsIn(broker, ROOT, record)
  const twice = labels.find((label, i) => labels.indexOf(label) !== i)
  return twice === undefined ? null : `${twice} is in the history twice: ${JSON.stringify(labels)}`
}

/**
 * An effect that was begun twice, and given something else the second time: the run that began it was not bound to its course. A retry by hand may forget
 * what came before an effect; nothing else may.
 */
function changedMind({ executions }: World): string | null {
  const given = new Map<string, string>()
  for (const { label, of } of executions) {
    const before = given.get(label) ?? of
    if (before !== of) return `${label} was begun with ${before}, and again with ${of}`
    given.set(label, of)
  }
  return null
}

/** The places of a program that a history and those below it tell of. */
async function labelsIn(broker: Broker, id: string, record: FinalRecord): Promise<string[]> {
  const labels: string[] = []
  for (let n = 0; n < (record.calls ?? 0); n++) {
    const child = childId(id, n)
    const one = await recordOf(broker, child)
    if (!one) continue
    if (one.step !== undefined && one.step !== 'sleep') labels.push(one.step)
    else if (one.kind === 'leaf') labels.push((one.payload as { label: string }).label)
    else if (one.kind === 'part') labels.push(...(await labelsIn(broker, child, one)))
  }
  return labels
}

async function recordOf(broker: Broker, id: string): Promise<FinalRecord | null> {
  const [stored] = await broker.get([id])
  return stored?.record ? readRecord(stored.record) : null
}
