import { afterEach, test } from 'bun:test'
import { encodeEnvelope, type FinalState } from '#shared/task/task.ts'
import type {
  Broker,
  CallOutcome,
  Cancellation,
  Claimed,
  ClaimRequest,
  Ended,
  Live,
  NewTask,
  Outcome,
  Retry,
} from '../broker.ts'

/** What not every store can do; the port leaves it open. */
export type Capability =
  /** A second connection sees the same tasks. */
  | 'secondConnection'
  /** Events of one connection reach those who watch on another. */
  | 'remoteEvents'
  /** First in, first out over all tasks of a kind and priority, and not only within a partition. */
  | 'order'

/** A store to be judged. */
export interface Store {
  name: string
  /** Connects to the part of the store that is named: empty at first, and the same one when it is opened `again`. */
  open(options: { namespace: string; now: () => number; again: boolean }): Promise<Broker>
  /** Forgets that part, after its connections were closed. */
  destroy?(namespace: string): Promise<void>
  /** What the store cannot do, each with the reason that a skipped test prints. */
  lacks?: Partial<Record<Capability, string>>
}

export interface Clock {
  now: () => number
  advance: (ms: number) => void
}

const START = Date.UTC(2030, 0, 1)
/** When a task ends unless a test says otherwise: when the clock began. */
const WHEN = { endedAt: START, expiresAt: null }
export const LEASE_MS = 30_000

/** What a test plays with: a broker on an empty store, a clock that stands still, and words for what tests often do. */
export interface Scene {
  broker: Broker
  clock: Clock
  /** A second connection to the same store. */
  again(): Promise<Broker>
  /** A task that is not in the store yet; a `sum` of normal priority unless told otherwise. */
  task(fields?: Partial<NewTask>): NewTask
  /** The n-th child of a task. */
  child(parent: { id: string; kind: string }, n: number, fields?: Partial<NewTask>): NewTask
  /** Reserves ended tasks and queues them again; gives the ids that were queued. */
  retry(tasks: readonly Again[]): Promise<string[]>
  /** Enqueues one task. */
  add(fields?: Partial<NewTask>): Promise<NewTask>
  /** Enqueues one task and claims it. Nothing else of its kind may be queued. */
  run(fields?: Partial<NewTask>): Promise<Claimed>
  /** Claims until nothing is queued: one call may return fewer than there are. */
  claimAll(request?: Partial<ClaimRequest>): Promise<Claimed[]>
  /** The live task; fails when there is none. */
  live(id: string): Promise<Live>
  /** The record of the final task; fails when there is none. */
  record(id: string): Promise<string>
}

/** A task that is retried; from an empty history unless told otherwise. */
type Again = Omit<Retry, 'token' | 'history' | 'ended'> & Partial<Retry>

export function request(fields: Partial<ClaimRequest> = {}): ClaimRequest {
  return { kinds: ['sum'], limit: 100, leaseMs: LEASE_MS, takeBack: false, ...fields }
}

export function recordOf(id: string, state: FinalState = 'succeeded'): string {
  return JSON.stringify({ result: `result of ${id}`, status_code: state === 'succeeded' ? 200 : 500, status: state })
}

type ChildOf = Pick<NewTask, 'parent'>
type Held = { id: string; kind: string; token: string }
const lease = ({ id, kind, token }: Held) => ({ id, kind, token })

export function end(
  task: Held,
  fields: ChildOf & { state?: FinalState; record?: string; endedAt?: number; expiresAt?: number | null } = {},
): Outcome {
  const state = fields.state ?? 'succeeded'
  return { ...lease(task), type: 'end', state, record: recordOf(task.id, state), ...WHEN, ...fields }
}

/** What a removal or a retry says of a task that `end` or `cancellation` ended. */
export function ended(task: { kind: string }, fields: Partial<Ended> = {}): { ended: Ended } {
  return { ended: { kind: task.kind, state: 'succeeded', at: WHEN.endedAt, expiresAt: WHEN.expiresAt, ...fields } }
}

export function retryAt(task: Held & { envelope: string }, at: number, envelope = task.envelope): Outcome {
  return { ...lease(task), type: 'retry', at, envelope }
}

export function release(task: Held): Outcome {
  return { ...lease(task), type: 'release' }
}

/** Calls children and parks, unless told otherwise. */
export function call(
  task: Held,
  fields: ChildOf & {
    children?: readonly NewTask[]
    records?: readonly { id: string; record: string }[]
    park?: boolean
    wakeAt?: number | null
    awaits?: CallOutcome['awaits']
    calls?: number
    steps?: number
    order?: string
  } = {},
): Outcome {
  const { children = [], records = [] } = fields
  return {
    ...lease(task),
    type: 'call',
    calls: children.length + records.length,
    steps: records.length,
    order: '',
    park: true,
    wakeAt: null,
    awaits: null,
    ...fields,
    children,
    records,
  }
}

export function cancellation(
  task: { id: string; kind: string } & ChildOf,
  fields: Partial<Cancellation> = {},
): Cancellation {
  const { id, kind, parent } = task
  return { id, kind, parent, record: recordOf(id, 'cancelled'), ...WHEN, ...fields }
}

export const ids = (tasks: readonly { id: string }[]): string[] => tasks.map((task) => task.id)

export async function openScene(store: Store): Promise<{ scene: Scene; close(): Promise<void> }> {
  const namespace = `t${crypto.randomUUID().replaceAll('-', '')}`
  let time = START
  const clock: Clock = {
    now: () => time,
    advance: (ms) => {
      time += ms
    },
  }
  const brokers: Broker[] = []
  async function open(again: boolean): Promise<Broker> {
    const broker = await store.open({ namespace, now: clock.now, again })
    brokers.push(broker)
    return broker
  }
  const broker = await open(false)

  function task(fields: Partial<NewTask> = {}): NewTask {
    const { id = Bun.randomUUIDv7(), kind = 'sum', priority = 'normal', parent } = fields
    const envelope = encodeEnvelope({ task_id: id, kind, payload: { of: id }, ...(parent && { parent }) })
    return { id, kind, priority, envelope, ...fields }
  }

  async function claimAll(fields: Partial<ClaimRequest> = {}): Promise<Claimed[]> {
    const claimed: Claimed[] = []
    for (;;) {
      const { tasks } = await broker.claim(request(fields))
      if (tasks.length === 0) return claimed
      claimed.push(...tasks)
    }
  }

  async function add(fields: Partial<NewTask> = {}): Promise<NewTask> {
    const added = task(fields)
    await broker.enqueue([added])
    return added
  }

  const scene: Scene = {
    broker,
    clock,
    again: () => open(true),
    task,
    child: ({ id, kind }, n, fields) => task({ id: `${id}.${n}`, parent: { id, kind }, ...fields }),
    async retry(tasks) {
      const tokens = await broker.reserve(
        tasks.map(({ id }) => ({ id })),
        LEASE_MS,
      )
      const history = { calls: 0, steps: 0, order: '' }
      return broker.retry(tasks.map((one, n) => ({ history, ended: null, ...one, token: tokens[n] ?? '' })))
    },
    add,
    async run(fields) {
      const { id, kind } = await add(fields)
      const claimed = await claimAll({ kinds: [kind] })
      const found = claimed.find((task) => task.id === id)
      if (!found || claimed.length > 1) throw new Error(`Claimed ${ids(claimed)} where ${id} was expected`)
      return found
    },
    claimAll,
    async live(id) {
      const [stored] = await broker.get([id])
      if (!stored?.live) throw new Error(`Task ${id} is not live: ${JSON.stringify(stored)}`)
      return stored.live
    },
    async record(id) {
      const [stored] = await broker.get([id])
      if (typeof stored?.record !== 'string') throw new Error(`Task ${id} is not final: ${JSON.stringify(stored)}`)
      return stored.record
    },
  }
  return {
    scene,
    async close() {
      for (const opened of brokers) await opened.close()
      await store.destroy?.(namespace)
    },
  }
}

/** Defines one test of the suite. */
export type Define = (name: string, body: (scene: Scene) => Promise<void>, needs?: Capability) => void

/** Gives each test a scene of its own, closed after it; a test that the store cannot pass is skipped with the reason in its name. */
export function define(store: Store): Define {
  let close: (() => Promise<void>) | undefined
  afterEach(async () => {
    await close?.()
    close = undefined
  })
  return (name, body, needs) => {
    const reason = needs && store.lacks?.[needs]
    if (reason) return test.skip(`${name} (skipped: ${reason})`, () => {})
    test(name, async () => {
      const opened = await openScene(store)
      close = opened.close
      await body(opened.scene)
    })
  }
}
