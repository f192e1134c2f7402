/** Whatever is asked of the port to a store is done or refused: no script stops half-way, and nothing is left behind that nobody can end. */
import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import type { Broker, Claimed, ClaimRequest, Outcome } from '#shared/broker/broker.ts'
import { FINAL_STATES, LIVE_STATES, PRIORITIES } from '#shared/task/task.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { stores } from '#shared/test/stores.ts'
import { bounded, jsonText, oddText, TIMEOUT_MS } from './arbitrary.ts'

/** Kinds as contracts name them, or as foreign records do. */
const KINDS = ['sum', 'chat', 'x'.repeat(64)]
const kind = fc.constantFrom(...KINDS)
const oddKind = fc.oneof(kind, oddText)
/** The first few meet each other again and again. */
const id = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom('a', 'a.0', 'a.1', 'a.0.0', 'b', 'b.0') },
  { weight: 1, arbitrary: oddText.filter((text) => text !== '') },
)
const START = manualClock().now()
const count = fc.oneof(fc.nat({ max: 3 }), fc.constantFrom(10_000_000))
const NO_TIMES = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
const time = fc.oneof(
  { weight: 20, arbitrary: fc.integer({ min: -2_000, max: 100_000 }).map((ms) => START + ms) },
  { weight: 20, arbitrary: fc.constantFrom(0, -0, -1, 0.5, 1e-9, START + 0.25, 8.64e15, 2 ** 53, -1e21, 1e21, 1e300) },
  { weight: 1, arbitrary: fc.constantFrom(...NO_TIMES) },
)
const timeOrNull = fc.option(time, { freq: 2 })
const text = fc.oneof(oddText, jsonText)
const parent = fc.option(fc.record({ id, kind: oddKind }), { nil: undefined, freq: 2 })
const ended = fc.option(
  fc.record({ kind: oddKind, state: fc.constantFrom(...FINAL_STATES), at: timeOrNull, expiresAt: timeOrNull }),
)
const history = fc.record({ calls: count, steps: count, order: fc.constantFrom('', '0:1') })
const newTask = fc
  .record({ id, kind, priority: fc.constantFrom(...PRIORITIES), dueAt: timeOrNull, parent, ended, history })
  .chain((task) =>
    fc
      .oneof(
        { weight: 4, arbitrary: fc.constant(`{"task_id":${JSON.stringify(task.id)},"v":1}`) },
        { weight: 1, arbitrary: text },
      )
      .map((envelope) => ({ ...task, envelope })),
  )
const limit = fc.constantFrom(0, 1, 3, 20_000)
const claimRequest: fc.Arbitrary<ClaimRequest> = fc.record({
  kinds: fc.uniqueArray(oddKind, { maxLength: 3 }),
  limit,
  leaseMs: fc.constantFrom(0, 1, 0.5, 30_000, 1e15, 1e21, -5),
  takeBack: fc.boolean(),
})
const finalState = fc.constantFrom(...FINAL_STATES)
const end = { state: finalState, record: text, endedAt: time, expiresAt: timeOrNull }
/** With the token of the lease if the task is held, unless another one is made up. */
const lease = { id, kind: oddKind, token: fc.option(oddText), parent }
const outcome = fc.oneof(
  fc.record({ ...lease, type: fc.constant('end' as const), ...end }),
  fc.record({ ...lease, type: fc.constant('adopt' as const), ...end }),
  fc.record({ ...lease, type: fc.constant('retry' as const), at: time }),
  fc.record({ ...lease, type: fc.constant('release' as const) }),
  fc.record({
    ...lease,
    type: fc.constant('call' as const),
    children: fc.array(newTask, { maxLength: 3 }),
    records: fc.array(fc.record({ id, record: text }), { maxLength: 2 }),
    calls: count,
    steps: count,
    order: fc.constantFrom('', '0:1'),
    park: fc.boolean(),
    wakeAt: timeOrNull,
    awaits: fc.option(fc.record({ alone: fc.nat({ max: 3 }), groups: fc.array(fc.nat({ max: 9 }), { maxLength: 2 }) })),
  }),
)
const apart = { selector: (one: { id: string }) => one.id, maxLength: 4 }
const place = fc.array(fc.oneof(count, fc.constantFrom(START, Number.MAX_SAFE_INTEGER)), { maxLength: 3 })
const progress = fc.record({ done: fc.oneof(count, time), total: fc.oneof(count, time) })

interface World {
  broker: Broker
  clock: ManualClock
  /** By id: the last lease. */
  leases: Map<string, { token: string; kind: string }>
  ids: Set<string>
}

/** A call of the port, as data, so that a failure shows it. */
const call = fc.oneof(
  fc.record({ method: fc.constant('enqueue' as const), tasks: fc.array(newTask, { maxLength: 4 }) }),
  fc.record({ method: fc.constant('claim' as const), request: claimRequest }),
  ...Array.from({ length: 3 }, () =>
    fc.record({
      method: fc.constant('settle' as const),
      outcomes: fc.uniqueArray(outcome, apart),
      next: fc.option(claimRequest, { nil: undefined }),
    }),
  ),
  fc.record({
    method: fc.constant('extend' as const),
    leases: fc.array(fc.record({ ...lease, progress: fc.option(progress, { nil: undefined }) }), { maxLength: 4 }),
    leaseMs: fc.constantFrom(0, -1, 0.5, 1e21, Number.NaN),
  }),
  fc.record({ method: fc.constant('get' as const), ids: fc.array(id, { maxLength: 4 }) }),
  fc.record({
    method: fc.constant('cancel' as const),
    tasks: fc.uniqueArray(fc.record({ id, parent, record: text, endedAt: time, expiresAt: timeOrNull }), apart),
  }),
  fc.record({ method: fc.constant('remove' as const), tasks: fc.array(fc.record({ id, ended }), { maxLength: 4 }) }),
  fc.record({ method: fc.constant('retry' as const), tasks: fc.uniqueArray(newTask, apart), leaseMs: time }),
  fc.record({
    method: fc.constant('list' as const),
    ...{ kind: oddKind, state: fc.constantFrom(...LIVE_STATES, ...FINAL_STATES), after: place, limit },
  }),
  fc.record({ method: fc.constant('stats' as const), kinds: fc.array(oddKind, { maxLength: 3 }) }),
  fc.record({ method: fc.constant('kinds' as const), kinds: fc.array(oddKind, { maxLength: 3 }) }),
  fc.record({ method: fc.constant('sweep' as const), limit }),
  fc.record({ method: fc.constant('wait' as const), ms: fc.constantFrom(1, 30_000, 100_000) }),
)
type Call = typeof call extends fc.Arbitrary<infer C> ? C : never

async function perform(world: World, asked: Call): Promise<unknown> {
  const { broker, leases, ids } = world
  const taken = (tasks: readonly Claimed[]) => {
    for (const { id, token, kind } of tasks) leases.set(id, { token, kind })
  }
  const held = <L extends { id: string; kind: string; token: string | null }>({ token, ...one }: L) =>
    token === null ? { ...one, token: '', ...leases.get(one.id) } : { ...one, token }
  // Who ends what is not leased has read of what kind it is.
  const withKind = async <T extends { id: string; kind?: string }>(tasks: readonly T[]) => {
    const found = await broker.get(tasks.map((task) => task.id))
    return tasks.map((task, i) => ({ ...task, kind: found[i]?.live?.kind ?? task.kind ?? 'sum' }))
  }
  switch (asked.method) {
    case 'enqueue':
      for (const task of asked.tasks) ids.add(task.id)
      return broker.enqueue(asked.tasks)
    case 'claim':
      return taken((await broker.claim(asked.request)).tasks)
    case 'settle': {
      for (const one of asked.outcomes) if (one.type === 'call') for (const child of one.children) ids.add(child.id)
      const outcomes = (await withKind(asked.outcomes)).map((one) => held(one) as Outcome)
      return taken((await broker.settle(outcomes, asked.next)).next?.tasks ?? [])
    }
    case 'extend':
      return broker.extend(asked.leases.map(held), asked.leaseMs)
    case 'get':
      return broker.get(asked.ids)
    case 'cancel':
      return broker.cancel(await withKind(asked.tasks))
    case 'remove':
      return broker.remove(asked.tasks)
    case 'retry': {
      const tokens = await broker.reserve(asked.tasks, asked.leaseMs)
      return broker.retry(asked.tasks.map((task, i) => ({ ...task, token: tokens[i] ?? 'none' })))
    }
    case 'list':
      return broker.list(asked)
    case 'stats':
      return broker.stats(asked.kinds)
    case 'kinds':
      return broker.kinds(asked.kinds)
    case 'sweep':
      return broker.sweep(asked.limit)
    case 'wait':
      return world.clock.advance(asked.ms)
  }
}

/** Ends whatever still lives: what can be run is run, what waits for something that never comes is cancelled. */
async function endAll({ broker, clock, ids }: World): Promise<void> {
  const request = { kinds: KINDS, limit: 1_000, leaseMs: 1_000, takeBack: true }
  const how = { state: 'succeeded', record: RECORD, endedAt: 0, expiresAt: null } as const
  const runAll = async () => {
    clock.advance(1_000_000)
    for (;;) {
      const { tasks } = await broker.claim(request)
      if (tasks.length === 0) return
      await broker.settle(tasks.map(({ id, kind, token }) => ({ id, kind, token, type: 'end', ...how })))
    }
  }
  await runAll()
  const left = (await broker.get([...ids])).flatMap((stored) =>
    stored?.live ? [{ id: stored.id, ...stored.live }] : [],
  )
  await broker.cancel(left.map(({ id, kind }) => ({ id, kind, ...how })))
  // Drops the envelopes of those that were cancelled.
  await runAll()
  expect((await broker.get([...ids])).filter((stored) => stored?.live)).toEqual([])
  for (const { queued, running, waiting, delayed } of await broker.stats(KINDS)) {
    expect({ queued, running, waiting, delayed }).toEqual({ queued: 0, running: 0, waiting: 0, delayed: 0 })
  }
}

const RECORD = '{"result":"","status_code":200}'

async function runPlain({ broker }: World): Promise<void> {
  const [id, kind] = ['plain', 'sum']
  await broker.enqueue([{ id, kind, priority: 'normal', envelope: `{"task_id":"${id}","v":1}` }])
  const { tasks } = await broker.claim({ kinds: [kind], limit: 1, leaseMs: 1_000, takeBack: false })
  expect(tasks.map((task) => task.id)).toEqual([id])
  const end = { type: 'end', state: 'succeeded', record: RECORD, endedAt: 0, expiresAt: null } as const
  expect((await broker.settle(tasks.map(({ token }) => ({ id, kind, token, ...end })))).refused).toEqual([])
  expect(await broker.get([id])).toEqual([{ id, record: RECORD, live: null }])
}

describe.each(stores)('on $name', (store) => {
  test(
    'whatever is asked of the port is done or refused, and nothing is left that nobody can end',
    async () => {
      const seen = { done: 0, refused: 0 }
      await fc.assert(
        fc.asyncProperty(fc.array(call, { minLength: 5, maxLength: 25, size: 'max' }), async (calls) => {
          const clock = manualClock()
          const broker = store.open({ now: clock.now })
          try {
            const world: World = { broker, clock, leases: new Map(), ids: new Set() }
            for (const asked of calls) {
              // A time that is none is refused whole; a store that stops half-way would say StoreUnavailable.
              const error: unknown = await perform(world, asked).then(
                () => null,
                (reason: unknown) => reason,
              )
              if (error !== null) expect(error).toBeInstanceOf(TypeError)
              seen[error === null ? 'done' : 'refused']++
            }
            await endAll(world)
            await runPlain(world)
          } finally {
            await broker.close()
          }
        }),
        bounded(0.3),
      )
      // Else it would say little.
      expect(seen.done).toBeGreaterThan(5 * seen.refused)
      expect(seen.refused).toBeGreaterThan(0)
    },
    TIMEOUT_MS,
  )
})
