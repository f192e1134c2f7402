import { type FinalState, LIVE_STATES, type LiveState, PRIORITIES, type State } from '#shared/task/task.ts'
import type { Claimed, ClaimRequest, KindStats, NewTask, Outcome, Stored } from '../broker.ts'
import { recordOf } from './scene.ts'

export interface ModelTask {
  task: NewTask
  state: State
  /** While it is queued: of two tasks in one queue, the one with the lower turn is first. Those that came back together share one. */
  turn: number
  /** When it comes back, or when it ended. */
  at: number
  token: string
  attempts: number
  calls: number
  steps: number
  order: string
  startedAt: number | null
  progress: { done: number; total: number } | null
  record: string
  /** It was cancelled before it ran, so that its envelope may still be in the queue. */
  dropped: boolean
  expiresAt: number | null
  /** When a sweep gave it as expired. */
  sweptAt?: number
}

/** What a store should hold, as a plain object: the slow and obvious way. */
export interface Model {
  now: number
  tasks: Map<string, ModelTask>
  /** Records of steps. */
  records: Map<string, string>
  back: number
  front: number
}

export const newModel = (now: number): Model => ({ now, tasks: new Map(), records: new Map(), back: 0, front: 0 })

const NEVER = Number.POSITIVE_INFINITY

export const isLive = (task: ModelTask): boolean => LIVE_STATES.some((state) => state === task.state)

/** Children that have not ended. */
export function pendingOf(model: Model, id: string): number {
  return unfinished(model, id).length
}

function unfinished(model: Model, id: string, group?: 'one' | number): ModelTask[] {
  const all = [...model.tasks.values()].filter((one) => one.task.parent?.id === id && isLive(one))
  return group === undefined ? all : all.filter((one) => one.task.parent?.group === group)
}

export function enqueue(model: Model, task: NewTask): boolean {
  if (model.tasks.has(task.id) || model.records.has(task.id)) return false
  const delayed = (task.dueAt ?? 0) > model.now
  model.tasks.set(task.id, {
    task,
    state: delayed ? 'delayed' : 'queued',
    turn: ++model.back,
    at: task.dueAt ?? 0,
    token: '',
    attempts: 0,
    calls: 0,
    steps: 0,
    order: '',
    startedAt: null,
    progress: null,
    record: '',
    dropped: false,
    expiresAt: null,
  })
  return true
}

function toFront(model: Model, task: ModelTask): void {
  task.state = 'queued'
  task.turn = model.front
}

/** Puts back what is due of these kinds. Nothing is said of the order among them. */
export function takeBack(model: Model, kinds: readonly string[]): void {
  model.front--
  for (const one of model.tasks.values()) {
    if (!['running', 'delayed', 'waiting'].includes(one.state)) continue
    if (!kinds.includes(one.task.kind) || one.at > model.now) continue
    if (one.state === 'running') {
      one.attempts++
      one.startedAt = null
    }
    toFront(model, one)
  }
}

/** Takes over what the store has claimed; returns what is wrong with it, or null. */
export function claimed(
  model: Model,
  tasks: readonly Claimed[],
  request: ClaimRequest,
  ordered: boolean,
): string | null {
  const queued = [...model.tasks.values()].filter(
    (one) => one.state === 'queued' && request.kinds.includes(one.task.kind),
  )
  const place = ({ task, turn }: ModelTask): number[] => [
    PRIORITIES.indexOf(task.priority),
    request.kinds.indexOf(task.kind),
    turn,
  ]
  queued.sort((a, b) => compare(place(a), place(b)))
  const expected = Math.min(request.limit, queued.length)
  if (tasks.length !== expected) return `claimed ${tasks.length} of ${expected}`
  for (const [i, task] of tasks.entries()) {
    const one = model.tasks.get(task.id)
    if (one?.state !== 'queued') return `claimed ${task.id}, which is ${one?.state}`
    const turn = queued[i]
    if (ordered && turn && compare(place(one), place(turn)) !== 0) return `claimed ${task.id} out of turn`
    const { calls, steps, order } = one
    const should = { attempt: one.attempts + 1, calls, steps, order, envelope: one.task.envelope }
    const found = {
      attempt: task.attempt,
      calls: task.calls,
      steps: task.steps,
      order: task.order,
      envelope: task.envelope,
    }
    if (JSON.stringify(found) !== JSON.stringify(should)) return `claimed ${task.id} wrongly`
    one.state = 'running'
    one.token = task.token
    one.at = model.now + request.leaseMs
    one.startedAt ??= model.now
  }
  return null
}

function compare(a: readonly number[], b: readonly number[]): number {
  return a.map((value, i) => value - (b[i] ?? 0)).find((difference) => difference !== 0) ?? 0
}

/** Returns false when the outcome is to be refused. */
export function settle(model: Model, outcome: Outcome): boolean {
  const one = model.tasks.get(outcome.id)
  if (one?.state !== 'running' || one.token !== outcome.token) return false
  switch (outcome.type) {
    case 'end':
      finish(model, one, outcome)
      break
    case 'retry':
      one.state = 'delayed'
      one.attempts++
      one.startedAt = null
      one.at = outcome.at
      one.task = { ...one.task, envelope: outcome.envelope }
      break
    case 'release':
      model.front--
      toFront(model, one)
      break
    case 'call': {
      for (const child of outcome.children) enqueue(model, child)
      for (const { id, record } of outcome.records) model.records.set(id, record)
      one.calls = outcome.calls
      one.steps = outcome.steps
      one.order = outcome.order
      if (!outcome.park) break
      if (mayGoOn(model, outcome)) {
        model.front--
        toFront(model, one)
      } else {
        one.state = 'waiting'
        one.at = outcome.wakeAt ?? NEVER
      }
    }
  }
  return true
}

/** Whether something that a task is parked for has ended by now. */
function mayGoOn(model: Model, { id, wakeAt, awaits }: Outcome & { type: 'call' }): boolean {
  if (awaits === null) return wakeAt === null && pendingOf(model, id) === 0
  const grouped = awaits.groups.map((group) => unfinished(model, id, group).length)
  return grouped.includes(0) || pendingOf(model, id) - grouped.reduce((a, b) => a + b, 0) < awaits.alone
}

/** Ends a live task; its parent goes on when it was the last. */
function finish(
  model: Model,
  one: ModelTask,
  how: { state: FinalState; record: string; expiresAt: number | null },
): void {
  one.dropped = one.state === 'queued'
  one.state = how.state
  one.record = how.record
  one.at = model.now
  const parent = one.task.parent && model.tasks.get(one.task.parent.id)
  if (!one.task.parent) one.expiresAt = how.expiresAt
  const group = one.task.parent?.group
  const isLast = (of?: 'one' | number) => unfinished(model, parent?.task.id ?? '', of).length === 0
  if (parent?.state === 'waiting' && (isLast() || group === 'one' || (group !== undefined && isLast(group)))) {
    model.front--
    toFront(model, parent)
  }
}

export function cancel(model: Model, id: string, expiresAt: number | null): boolean {
  const one = model.tasks.get(id)
  if (!one || !isLive(one)) return false
  finish(model, one, { state: 'cancelled', record: recordOf(id, 'cancelled'), expiresAt })
  return true
}

/** What `get` should answer. */
export function stored(model: Model, id: string): Stored | null {
  const record = model.records.get(id)
  if (record !== undefined) return { id, record, live: null }
  const one = model.tasks.get(id)
  if (!one) return null
  if (!isLive(one)) return { id, record: one.record, live: null }
  const { task, state, attempts, calls, steps, order, startedAt, progress } = one
  return {
    id,
    record: null,
    live: {
      state: state as LiveState,
      kind: task.kind,
      attempts,
      calls,
      steps,
      order,
      pending: pendingOf(model, id),
      startedAt,
      progress,
      envelope: task.envelope,
    },
  }
}

/** What `stats` should answer, but for the envelopes at the front. */
export function stats(model: Model, kind: string): KindStats {
  const all = [...model.tasks.values()].filter((one) => one.task.kind === kind)
  const count = (state: State, after = Number.NEGATIVE_INFINITY) =>
    all.filter((one) => one.state === state && one.at > after).length
  const minute = model.now - 60_000
  return {
    kind,
    queued: count('queued'),
    running: count('running'),
    waiting: count('waiting'),
    delayed: count('delayed'),
    succeeded: count('succeeded'),
    failed: count('failed'),
    cancelled: count('cancelled'),
    broken: 0,
    oldest: [],
    lastMinute: { succeeded: count('succeeded', minute), failed: count('failed', minute) },
  }
}
