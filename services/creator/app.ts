import type { Context, Hono } from 'hono'
import { uuidv7 } from 'uuidv7'
import type { Broker, NewTask } from '#shared/broker/broker.ts'
import { limitReads } from '#shared/broker/limit-reads.ts'
import { type Contracts, contractOf } from '#shared/broker/view.ts'
import { type Auth, requireScope } from '#shared/http/auth.ts'
import { type BaseEnv, createBase } from '#shared/http/base.ts'
import { jsonOnly, wantsText } from '#shared/http/body.ts'
import type { Doors } from '#shared/http/doors.ts'
import { readJson } from '#shared/http/json.ts'
import { Problem } from '#shared/http/problem.ts'
import { readQuery } from '#shared/http/query.ts'
import { createGroup } from '#shared/runtime/group.ts'
import type { Log } from '#shared/runtime/log.ts'
import { type Keyring, sealPayload } from '#shared/runtime/seal.ts'
import type { Contract } from '#shared/task/define.ts'
import { StateConflict } from '#shared/task/errors.ts'
import { isTraceparent } from '#shared/task/limits.ts'
import { readRecord } from '#shared/task/record.ts'
import { nameOf } from '#shared/task/secret.ts'
import { encodeEnvelope, finalState, type State } from '#shared/task/task.ts'
import { idOfKey, isSame, markOf } from './idempotency.ts'
import { type Creation, readBatch, readCreation, type TaskOptions } from './options.ts'

export interface CreatorDeps {
  broker: Broker
  contracts: Contracts
  /** Null: kinds with secret fields are refused. */
  keyring: Keyring | null
  /** Where callers reach the manager, without a slash at the end: for `Location`. Null: at `managerPort` of the host that they called, or, without that, nobody knows. */
  managerUrl: string | null
  managerPort?: number
  log: Log
  /** Null: every request is let in. */
  auth: Auth | null
  doors?: Doors
  /** Milliseconds since the epoch. */
  now?: () => number
  /** A UUIDv7 that was never given before. */
  newId?: () => string
  /** Called when tasks of a kind were stored. */
  onCreated?: (kind: string) => void
}

/** Tasks, and characters of envelopes, that go to the store in one call. */
const MAX_GROUP = 500
const MAX_GROUP_CHARS = 500_000

/** Characters of envelopes that may wait for a store that is slow. */
const MAX_WAITING_CHARS = 16_000_000

/** The creator: `POST /{kind}` and `POST /{kind}/batch` for every kind of the registry. It answers 201 only after the store has acknowledged. */
export function createApp(deps: CreatorDeps): Hono<BaseEnv> {
  const { contracts, managerUrl, now = Date.now, newId = uuidv7 } = deps
  const broker = limitReads(deps.broker)
  const kinds = Object.keys(contracts)
  const weigh = ({ envelope }: NewTask) => envelope.length
  const enqueueTogether = createGroup((tasks: NewTask[]) => broker.enqueue(tasks), {
    maxBatch: MAX_GROUP,
    weigh,
    maxWeight: MAX_GROUP_CHARS,
  })
  let waitingChars = 0
  const managerOf = (c: Context) =>
    managerUrl ?? (deps.managerPort === undefined ? null : sameHost(c, deps.managerPort))

  const app = createBase({
    service: 'creator',
    about: {
      kinds: Object.fromEntries(kinds.map((kind) => [kind, { create: `/${kind}`, batch: `/${kind}/batch` }])),
      links: { ...(managerUrl === null ? {} : { manager: managerUrl }), health: '/healthz', ready: '/readyz' },
    },
    ...{ log: deps.log, auth: deps.auth, doors: deps.doors },
    ready: () => broker.ping(),
    unknownPath: `There is nothing here. Create a task with POST /<kind>; the kinds are ${kinds.join(', ')}.`,
  })

  function created(c: Context, task: { id: string; kind: string; status: State; replayed?: boolean }): Response {
    const manager = managerOf(c)
    if (manager !== null) c.header('Location', `${manager}/task/${encodeURIComponent(task.id)}`)
    if (task.replayed) c.header('Idempotent-Replayed', 'true')
    if (wantsText(c)) return c.text(task.id, 201)
    return c.json({ task_id: task.id, kind: task.kind, status: task.status }, 201)
  }

  async function newTask(task: {
    contract: Contract
    id: string
    payload: unknown
    options: TaskOptions
    traceparent: string | undefined
    fresh: boolean
    /** What tells whether it is the same that comes again, where it may. */
    given?: string | undefined
  }): Promise<NewTask> {
    const { contract, id, options, fresh, given } = task
    const { priority = 'normal', delay_ms, run_at, timeout_ms, max_attempts, retention_s } = options
    const createdAt = now()
    const envelope = encodeEnvelope({
      task_id: id,
      kind: contract.kind,
      payload: deps.keyring ? await sealPayload(deps.keyring, contract, id, task.payload) : task.payload,
      created_at: createdAt,
      ...(priority === 'normal' ? {} : { priority }),
      ...(max_attempts === undefined ? {} : { max_attempts }),
      ...(timeout_ms === undefined ? {} : { timeout_ms }),
      ...(retention_s === undefined ? {} : { retention_s }),
      ...(task.traceparent === undefined ? {} : { traceparent: task.traceparent }),
      ...(given === undefined ? {} : { given }),
    })
    const dueAt = run_at ?? (delay_ms ? createdAt + delay_ms : null)
    return { id, kind: contract.kind, priority, envelope, dueAt, fresh }
  }

  /** @throws Problem with code `store_busy` when too much waits for the store already. */
  async function enqueue(tasks: readonly NewTask[]) {
    const chars = tasks.reduce((sum, task) => sum + weigh(task), 0)
    if (waitingChars + chars > MAX_WAITING_CHARS) {
      const detail = 'The store cannot keep up. Nothing was accepted: send the request again later.'
      throw new Problem('store_busy', detail, { headers: { 'Retry-After': '1' } })
    }
    waitingChars += chars
    try {
      return await enqueueTogether(tasks)
    } finally {
      waitingChars -= chars
    }
  }

  /** Enqueues a task whose id may be known, and answers with the task that the key stands for. */
  async function enqueueOnce(contract: Contract, task: NewTask, creation: Creation) {
    // The task that was known may be deleted before it is read: then it is created after all.
    for (let turn = 0; turn < 3; turn++) {
      const [enqueued] = await enqueue([task])
      if (enqueued?.created) return { status: statusOf(task, now()), replayed: false }
      const [stored] = await broker.get([task.id])
      if (!stored) continue
      if (!isSame(contract, stored, creation)) {
        const before = `with another payload or other options, for task ${task.id}`
        const detail = `This Idempotency-Key was used before, ${before}. Use a new key.`
        throw new Problem('idempotency_conflict', detail)
      }
      const record = stored.live ? null : readRecord(stored.record)
      return { status: stored.live?.state ?? (record ? finalState(record) : 'failed'), replayed: true }
    }
    throw new StateConflict(`Task ${task.id} was created and deleted at the same time. Send the request again.`)
  }

  for (const kind of kinds) {
    const contract = contractOf(contracts, kind)
    if (!contract) continue

    app.post(`/${kind}`, requireScope(deps.auth, 'create'), jsonOnly, async (c) => {
      readQuery(c, [])
      const creation = readCreation(contract, await readJson(c))
      const { payload, options } = creation
      requireKey(contract, deps.keyring)
      const traceparent = readTraceparent(c)
      const key = c.req.header('Idempotency-Key')
      if (key === undefined) {
        const task = await newTask({ contract, id: newId(), payload, options, traceparent, fresh: true })
        await enqueue([task])
        deps.onCreated?.(kind)
        return created(c, { id: task.id, kind, status: statusOf(task, now()) })
      }
      const id = await idOfKey(kind, key)
      const given = markOf(contract, creation)
      const task = await newTask({ contract, id, payload, options, traceparent, fresh: false, given })
      const once = await enqueueOnce(contract, task, creation)
      deps.onCreated?.(kind)
      return created(c, { id, kind, ...once })
    })

    app.post(`/${kind}/batch`, requireScope(deps.auth, 'create'), jsonOnly, async (c) => {
      if (c.req.header('Idempotency-Key') !== undefined) {
        throw new Problem(
          'malformed',
          'A batch takes no Idempotency-Key: create its tasks one by one, each with a key.',
        )
      }
      readQuery(c, [])
      const payloads = readBatch(contract, await readJson(c))
      requireKey(contract, deps.keyring)
      const traceparent = readTraceparent(c)
      const tasks = await Promise.all(
        payloads.map((payload) => newTask({ contract, id: newId(), payload, options: {}, traceparent, fresh: true })),
      )
      await enqueue(tasks)
      deps.onCreated?.(kind)
      const ids = tasks.map(({ id }) => id)
      return wantsText(c) ? c.text(ids.join('\n'), 201) : c.json({ task_ids: ids }, 201)
    })
  }
  return app
}

/** Another port of the host that a request names; null when it names none. */
function sameHost(c: Context, port: number): string | null {
  const [, name] = /^([\w.-]+|\[[\da-f:.]+\])(?::\d+)?$/i.exec(c.req.header('Host') ?? '') ?? []
  return name === undefined ? null : `http://${name}:${port}`
}

function statusOf(task: NewTask, now: number): State {
  return task.dueAt != null && task.dueAt > now ? 'delayed' : 'queued'
}

function requireKey(contract: Contract, keyring: Keyring | null): void {
  if (contract.secrets.length === 0 || keyring) return
  const fields = contract.secrets.map(nameOf).join(', ')
  throw new Problem(
    'no_secret_key',
    `This service has no key to seal the secret fields of ${contract.kind} (${fields}): set TASKER_SECRET or TASKER_SECRET_FILE, the same for workers.`,
  )
}

/** The trace that the request is part of; one that is not well-formed (W3C Trace Context) is no trace. */
function readTraceparent(c: Context): string | undefined {
  const header = c.req.header('traceparent')
  return isTraceparent(header) ? header : undefined
}
