import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { noteAttempt } from '#shared/task/attempts.ts'
import { readEnvelope } from '#shared/task/record.ts'
import { FINAL_STATES, PRIORITIES } from '#shared/task/task.ts'
import type { Ended, Outcome } from '../broker.ts'
import * as models from './model.ts'
import {
  call,
  cancellation,
  end,
  LEASE_MS,
  openScene,
  recordOf,
  release,
  request,
  retryAt,
  type Scene,
  type Store,
} from './scene.ts'

const KINDS = ['sum', 'chat', 'sequence']
/** At most; a history has about half as many. */
const COMMANDS = 80

/**
 * Moves of the clock never land on a deadline, which are all whole seconds: what happens at that very moment is no matter here. They
 * stay clear of the end of the last minute by more than the 10 ms that a store may be off there.
 */
const OFF_BEAT_MS = 11

interface World {
  scene: Scene
  ordered: boolean
}

/**
 * A step of a history. It names tasks by `pick`, a number that chooses among those that there are when it runs, so that a history
 * keeps its sense while it is shrunk.
 */
type Command = fc.AsyncCommand<models.Model, World>

function command(
  name: string,
  run: (model: models.Model, world: World) => Promise<void>,
  check: (model: models.Model) => boolean = () => true,
): Command {
  return {
    check: (model) => check(model),
    toString: () => name,
    async run(model, world) {
      await run(model, world)
      await compare(model, world)
    },
  }
}

/** The store must hold what the model holds, after every step. */
async function compare(model: models.Model, { scene }: World): Promise<void> {
  const all = [...model.tasks.keys(), ...model.records.keys(), 'unknown']
  const expected: unknown[] = all.map((id) => models.stored(model, id))
  expect<unknown[]>(await scene.broker.get(all)).toEqual(expected)
  const found: unknown[] = (await scene.broker.stats(KINDS)).map((one) => ({ ...one, oldest: [] }))
  expect(found).toEqual(KINDS.map((kind) => models.stats(model, kind)))
}

const pick = fc.nat({ max: 9_999 })
const kind = fc.constantFrom(...KINDS)

function choose(model: models.Model, among: (task: models.ModelTask) => boolean, n: number) {
  const found = [...model.tasks.values()].filter(among)
  const one = found[n % found.length]
  if (!one) throw new Error('A command ran that its check should have left out')
  return one
}

const some = (among: (task: models.ModelTask) => boolean) => (model: models.Model) =>
  [...model.tasks.values()].some(among)
const running = (one: models.ModelTask) => one.state === 'running'
const final = (one: models.ModelTask) => !models.isLive(one)
const any = () => true

/** The task as one who runs it knows it. */
const held = ({ task, token }: models.ModelTask) => ({ id: task.id, kind: task.kind, parent: task.parent, token })

const enqueue = fc
  .record({
    kind,
    priority: fc.constantFrom(...PRIORITIES),
    delayS: fc.option(fc.integer({ min: 1, max: 90 }), { freq: 3 }),
    fresh: fc.boolean(),
  })
  .map(({ kind, priority, delayS, fresh }) =>
    command(`enqueue ${priority} ${kind}${delayS === null ? '' : ` in ${delayS} s`}`, async (model, { scene }) => {
      const added = scene.task({ kind, priority, fresh, dueAt: delayS === null ? null : second(model) + delayS * 1000 })
      models.enqueue(model, added)
      expect(await scene.broker.enqueue([added])).toEqual([{ id: added.id, created: true }])
    }),
  )

const enqueueAgain = pick.map((n) =>
  command(
    `enqueue known ${n}`,
    async (model, { scene }) => {
      const { task } = choose(model, any, n)
      expect(await scene.broker.enqueue([{ ...task, fresh: false }])).toEqual([{ id: task.id, created: false }])
    },
    some(any),
  ),
)

const claimRequest = fc
  .record({
    kinds: fc.uniqueArray(kind, { minLength: 1 }),
    limit: fc.integer({ min: 1, max: 5 }),
    takeBack: fc.boolean(),
  })
  .map((fields) => request(fields))

const claim = claimRequest.map((wanted) =>
  command(`claim ${wanted.limit} of ${wanted.kinds}${wanted.takeBack ? ', take back' : ''}`, async (model, world) => {
    const { tasks } = await world.scene.broker.claim(leaseOnBeat(model, wanted))
    if (wanted.takeBack) models.takeBack(model, wanted.kinds)
    expect(models.claimed(model, tasks, leaseOnBeat(model, wanted), world.ordered)).toBeNull()
  }),
)

/** Settles one task, which may be anything but must be running to be accepted. */
function settling(name: string, outcomeOf: (model: models.Model, one: models.ModelTask, scene: Scene) => Outcome) {
  return fc.record({ n: pick, next: fc.option(claimRequest, { freq: 3 }) }).map(({ n, next }) =>
    command(
      `${name} ${n}${next ? ', claim next' : ''}`,
      async (model, { scene, ordered }) => {
        const outcome = outcomeOf(model, choose(model, running, n), scene)
        const wanted = next && leaseOnBeat(model, { ...next, takeBack: false })
        const accepted = models.settle(model, outcome)
        const settled = await scene.broker.settle([outcome], wanted ?? undefined)
        expect(settled.refused).toEqual(accepted ? [] : [outcome.id])
        // Only a call that claims on every partition can be held to the number that there is.
        if (wanted && ordered) expect(models.claimed(model, settled.next?.tasks ?? [], wanted, true)).toBeNull()
        else for (const task of settled.next?.tasks ?? []) takeOver(model, task, wanted?.leaseMs ?? 0)
      },
      some(running),
    ),
  )
}

function takeOver(model: models.Model, task: { id: string; token: string }, leaseMs: number): void {
  const one = model.tasks.get(task.id)
  expect(one?.state).toBe('queued')
  if (one)
    Object.assign(one, {
      state: 'running',
      token: task.token,
      at: model.now + leaseMs,
      startedAt: one.startedAt ?? model.now,
    })
}

const ending = fc
  .record({ state: fc.constantFrom('succeeded' as const, 'failed' as const), keepS: fc.option(fc.nat({ max: 90 })) })
  .chain(({ state, keepS }) =>
    settling(`end ${state}`, (model, one) =>
      end(held(one), {
        parent: one.task.parent,
        state,
        endedAt: model.now,
        expiresAt: keepS === null ? null : second(model) + keepS * 1000,
      }),
    ),
  )

const retrying = fc.integer({ min: 0, max: 90 }).chain((s) =>
  settling(`retry in ${s} s`, (model, one) => ({
    ...retryAt({ ...held(one), envelope: one.task.envelope }, second(model) + s * 1000, envelopeAfter(one)),
    parent: one.task.parent,
  })),
)

/** The envelope with one more error. */
const envelopeAfter = ({ task, attempts, at }: models.ModelTask) =>
  noteAttempt(task.envelope, readEnvelope(task.envelope)?.attempts, {
    ...{ attempt: attempts + 1, type: 'error', message: 'No luck.', status_code: 500, at },
  })

const releasing = settling('release', (_, one) => ({ ...release(held(one)), parent: one.task.parent }))

const late = settling('settle too late', (model, one) =>
  end({ ...held(one), token: 'of another' }, { endedAt: model.now }),
)

/** Calls children or notes a step, first the whole history again when `again`. */
const calling = fc
  .record({
    children: fc.array(kind, { maxLength: 3 }),
    step: fc.boolean(),
    again: fc.boolean(),
    park: fc.boolean(),
    wakeS: fc.option(fc.integer({ min: 1, max: 90 }), { freq: 2 }),
    group: fc.constantFrom('all', 'one', 'group'),
    alone: fc.option(fc.nat({ max: 3 }), { freq: 2 }),
  })
  .chain(({ children, step, again, park, wakeS, group, alone }) =>
    settling(
      `call ${children.length ? children : 'nothing'}${step ? ' and a step' : ''}${park ? ', park' : ''}`,
      (model, one, scene) => {
        const called = [...model.tasks.values()].filter(({ task }) => task.parent?.id === one.task.id)
        const known = again ? called : []
        const { id } = one.task
        const parent = {
          id,
          kind: one.task.kind,
          ...(group === 'all' ? {} : { group: group === 'one' ? group : one.calls }),
        }
        const added = children.map((kind, i) => scene.child(one.task, one.calls + i, { kind, parent }))
        const groups = [...called.map(({ task }) => task), ...added].flatMap(({ parent }) => parent?.group ?? [])
        const at = one.calls + children.length
        const records = step ? [{ id: `${one.task.id}.${at}`, record: recordOf('step') }] : []
        return call(held(one), {
          parent: one.task.parent,
          children: [...known.map(({ task }) => task), ...added],
          records,
          calls: at + records.length,
          steps: one.steps + records.length,
          order: step ? `0:${at}` : one.order,
          awaits: alone === null ? null : { alone, groups: [...new Set(groups.filter((group) => group !== 'one'))] },
          park,
          wakeAt: wakeS === null ? null : second(model) + wakeS * 1000,
        })
      },
    ),
  )

const extend = fc
  .record({ n: pick, done: fc.option(fc.nat({ max: 9 })), stranger: fc.boolean() })
  .map(({ n, done, stranger }) =>
    command(
      `extend ${n}${stranger ? ' with another token' : ''}`,
      async (model, { scene }) => {
        const one = choose(model, any, n)
        const progress = done === null ? undefined : { done, total: 9 }
        const token = stranger ? 'of another' : one.token
        const leaseMs = second(model) + LEASE_MS - model.now
        const lapsed = await scene.broker.extend([{ ...held(one), token, progress }], leaseMs)
        const holds = one.state === 'running' && !stranger
        if (holds) {
          one.at = model.now + leaseMs
          one.progress = progress ?? one.progress
        }
        const gone = one.state === 'cancelled'
        expect(lapsed).toEqual({
          lost: holds || gone ? [] : [one.task.id],
          cancelled: gone ? [one.task.id] : [],
        })
      },
      some(any),
    ),
  )

const cancel = fc.record({ n: pick, keepS: fc.option(fc.nat({ max: 90 })) }).map(({ n, keepS }) =>
  command(
    `cancel ${n}`,
    async (model, { scene }) => {
      const { task, calls } = choose(model, any, n)
      const expiresAt = keepS === null ? null : second(model) + keepS * 1000
      const cancelled = models.cancel(model, task.id, expiresAt)
      const [answer] = await scene.broker.cancel([cancellation(task, { endedAt: model.now, expiresAt })])
      expect(answer).toMatchObject({ id: task.id, cancelled, ...(cancelled && { calls }) })
    },
    some(any),
  ),
)

/** What the record of a task that has ended would tell; of one that has not, something. */
function endedAs({ task: { kind }, state, at, expiresAt }: models.ModelTask): Ended {
  const final = FINAL_STATES.find((one) => one === state)
  return { kind, state: final ?? 'succeeded', at: final ? at : null, expiresAt }
}

const remove = pick.map((n) =>
  command(
    `remove ${n}`,
    async (model, { scene }) => {
      const one = choose(model, any, n)
      await scene.broker.remove([{ id: one.task.id, ended: endedAs(one) }])
      if (final(one)) model.tasks.delete(one.task.id)
    },
    some(any),
  ),
)

/**
 * Roots alone are retried, and only when nothing below them lives: the callers see to that. One that was cancelled before it ran is left out: a store
 * that has not dropped its envelope yet may run it at its old place, which harms nobody but would be out of turn here.
 */
const retriable = (model: models.Model) => (one: models.ModelTask) =>
  !one.task.parent && !one.dropped && (models.isLive(one) || models.pendingOf(model, one.task.id) === 0)

const retry = pick.map((n) =>
  command(
    `retry by hand ${n}`,
    async (model, { scene }) => {
      const one = choose(model, retriable(model), n)
      const { calls, steps, order } = one
      const { id, kind, priority, envelope } = one.task
      const again = { id, kind, priority, envelope, history: { calls, steps, order }, ended: endedAs(one) }
      expect(await scene.retry([again])).toEqual(final(one) ? [one.task.id] : [])
      if (!final(one)) return
      model.tasks.delete(one.task.id)
      models.enqueue(model, { ...one.task, dueAt: null })
      Object.assign(model.tasks.get(one.task.id) ?? {}, { calls, steps, order })
    },
    (model) => some(retriable(model))(model),
  ),
)

const sweep = fc.constant(
  command('sweep', async (model, { scene }) => {
    const due = (one: models.ModelTask) => final(one) && one.expiresAt !== null && one.expiresAt <= model.now
    const expired = [...model.tasks.values()].filter(due).map((one) => one.task.id)
    const swept = await scene.broker.sweep(1000)
    // What was given a short while ago need not be given again.
    const given = (id: string) => (model.tasks.get(id)?.sweptAt ?? -Infinity) > model.now - 60_000
    const needed = expired.filter((id) => swept.expired.includes(id) || !given(id))
    expect({ ...swept, expired: swept.expired.toSorted() }).toEqual({ expired: needed.toSorted(), foreign: [] })
    for (const id of swept.expired) Object.assign(model.tasks.get(id) ?? {}, { sweptAt: model.now })
  }),
)

const wait = fc.integer({ min: 0, max: 70 }).map((s) =>
  command(`wait ${s} s`, async (model, { scene }) => {
    const ms = s * 1000 + OFF_BEAT_MS
    scene.clock.advance(ms)
    model.now += ms
  }),
)

const second = (model: models.Model) => Math.floor(model.now / 1000) * 1000

const leaseOnBeat = <R extends { leaseMs: number }>(model: models.Model, wanted: R): R => ({
  ...wanted,
  leaseMs: second(model) + LEASE_MS - model.now,
})

// A command that is named twice comes twice as often.
const COMMAND_ARBITRARIES = [
  enqueue,
  enqueue,
  claim,
  claim,
  ending,
  ending,
  calling,
  calling,
  retrying,
  releasing,
  late,
]
const RARER = [enqueueAgain, extend, cancel, remove, retry, sweep, wait, wait]

export function testProperty(store: Store, numRuns: number): void {
  const ordered = store.lacks?.order === undefined
  test('hold in the store what they hold in the model', async () => {
    const histories = fc.commands([...COMMAND_ARBITRARIES, ...RARER], { maxCommands: COMMANDS, size: 'max' })
    const property = fc.asyncProperty(histories, async (commands) => {
      const { scene, close } = await openScene(store)
      try {
        await fc.asyncModelRun(
          () => ({ model: models.newModel(scene.clock.now()), real: { scene, ordered } }),
          commands,
        )
      } finally {
        await close()
      }
    })
    // On failure it throws an error that has the seed, the path and the shortest history that it found.
    await fc.assert(property, { numRuns, interruptAfterTimeLimit: 60_000, markInterruptAsFailure: true })
  }, 90_000)
}
