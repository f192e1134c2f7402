/** What the edge entry points of the workers share. */
import type { Broker } from '#shared/broker/broker.ts'
import { SWEEP_LIMIT, sweepOnce } from '#shared/broker/expire.ts'
import { createAuth, requireScope } from '#shared/http/auth.ts'
import { createBase } from '#shared/http/base.ts'
import { Problem } from '#shared/http/problem.ts'
import type { Config } from '#shared/runtime/config.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import type { Implementation } from '#shared/worker/implement.ts'
import { runnable } from '#shared/worker/keys.ts'
import { createWorker, type DrainReport } from '#shared/worker/worker.ts'
import { type EdgeModule, type Invocation, misconfigured, openInvocation } from '../edge.ts'
import { createWaker } from '../wake.ts'

/** Requests that are kept back to settle, to extend leases and to wake others when the budget is nearly used up. */
const RESERVE = 8

/** Runs at once, unless the entry point says otherwise: each may need requests of its own, and edge runtimes allow few connections at a time. */
const CONCURRENCY = 5

/**
 * A worker that drains when it is called: on `scheduled`, and on `POST /drain` with the bearer token of `DRAIN_TOKEN`. It stops within the limits of time, tasks and
 * requests, holds nothing then, and wakes the workers of the kinds that it queued. `POST /drain` answers with what was done, or at once with 202 when it
 * is asked to (`Prefer: respond-async`). Where the store never answered it is a 503, and wakes nobody.
 */
export function createWorkerEdge(options: {
  implementations: (config: Config, fetch: typeof globalThis.fetch) => readonly Implementation[]
  /** Whether handlers make requests of their own. */
  makesRequests?: boolean
  /** Runs at once. More than the default is for handlers that await nothing. */
  concurrency?: number
}): EdgeModule {
  const waker = createWaker()
  /** For which time all was swept. */
  let sweptAt = Number.NEGATIVE_INFINITY
  /** Whether the store knows of its kinds. */
  let hasNoted = false

  async function drain(invocation: Invocation): Promise<DrainReport> {
    const { config, broker, keyring, log, requests, count } = invocation
    const { concurrency = CONCURRENCY } = options
    /** What a run under way may still need: a call to store what it has done, one to give it back, and a request of its own before that. */
    const perRun = options.makesRequests ? 3 : 2
    const counted = (...args: Parameters<typeof fetch>) => {
      count()
      return fetch(...args)
    }
    const implementations = options.implementations(config, Object.assign(counted, fetch))
    const worker = createWorker({
      ...{ broker, keyring, log, implementations, concurrency },
      leaseMs: config.leaseMs,
      pollMs: config.workerPollMs,
      graceMs: GRACE_MS,
    })
    const limits = {
      maxTasks: config.drain.maxTasks,
      mayGoOn: (runs: number) => requests() + RESERVE + runs * perRun < config.drain.maxRequests,
    }
    const report = await worker.drain(limits, AbortSignal.timeout(config.drain.maxMs))
    // To wake itself would be to ask a store without end that is away: the next schedule will do.
    if (!report.reached) throw new StoreUnavailable('drain: the store did not answer, so nothing was run.')
    const kinds = implementations.map(({ contract }) => contract.kind)
    const others = report.queued.filter((kind) => !kinds.includes(kind))
    waker.wake(report.more ? [...others, ...kinds] : others, invocation)
    return report
  }

  return {
    async fetch(request, env, context) {
      try {
        const invocation = await openInvocation(env, context)
        const { config, log, broker, waitUntil } = invocation
        runnable(options.implementations(config, fetch), invocation.keyring)
        const { token } = config.drain
        const auth = await createAuth(token === null ? [] : [{ token, scopes: ['manage'] }])
        const app = createBase({
          ...{ service: 'worker', log },
          about: { links: { drain: '/drain', health: '/healthz', ready: '/readyz' } },
          ready: () => broker.ping(),
          unknownPath: 'There is nothing here. POST /drain runs what is queued.',
        })
        app.post('/drain', requireScope(auth, 'manage'), async (c) => {
          if (auth === null) throw new Problem('forbidden', 'Nobody may drain this worker: set DRAIN_TOKEN.')
          if (c.req.header('Prefer') !== 'respond-async') return c.json(await drain(invocation))
          waitUntil(drain(invocation))
          return c.json({ accepted: true }, 202)
        })
        return await app.fetch(request)
      } catch (error) {
        return misconfigured(error)
      }
    },

    async scheduled(event, env, context) {
      const invocation = await openInvocation(env, context)
      const { broker, config } = invocation
      // Nobody notes the kinds where no worker loops, so that their tasks are found when they are taken out.
      if (!hasNoted) await broker.kinds(options.implementations(config, fetch).map(({ contract }) => contract.kind))
      hasNoted = true
      // Nor does anybody else sweep. Every command is billed: once all is swept, an hour later is soon enough.
      const at = timeOf(event)
      if (at - sweptAt >= SWEEP_EVERY_MS && (await sweepAll(invocation))) sweptAt = at
      await drain(invocation)
    },
  }
}

/** Sweeps until there is nothing left, which it says, or until its share of an invocation is used up. */
async function sweepAll({ broker, config, requests }: Invocation): Promise<boolean> {
  const end = Date.now() + config.drain.maxMs * SWEEP_SHARE
  const mayAsk = (times: number) => requests() + times <= config.drain.maxRequests * SWEEP_SHARE && Date.now() < end
  const guard =
    <Args extends unknown[], Answer>(call: (...args: Args) => Promise<Answer>, times = 1) =>
    async (...args: Args): Promise<Answer> => {
      if (!mayAsk(times)) throw new ShareUsedUp()
      return call(...args)
    }
  // It may be stopped before any call, as by a crash, and goes on from there the next time.
  const { sweep, get, settle, cancel, remove } = broker
  const limited: Broker = {
    ...broker,
    // What it gives is kept from others for a while: it is asked for when it can be read and forgotten, too.
    sweep: guard(sweep, 3),
    get: guard(get),
    settle: guard(settle),
    cancel: guard(cancel),
    remove: guard(remove),
  }
  try {
    for (;;) {
      const { expired, adopted } = await sweepOnce({ broker: limited, contracts: {}, now: Date.now }, SWEEP_LIMIT)
      if (expired < SWEEP_LIMIT && adopted === 0) return true
    }
  } catch (error) {
    if (error instanceof ShareUsedUp) return false
    throw error
  }
}

class ShareUsedUp extends Error {
  override readonly name = 'ShareUsedUp'
}

/** What a sweep may take of an invocation's requests and time. */
const SWEEP_SHARE = 0.5
/** How long after a sweep that left nothing an instance sweeps again. */
const SWEEP_EVERY_MS = 3_600_000

/** What still runs when the time of an invocation is over has so many ms to end. */
const GRACE_MS = 4_000

/** The time that a schedule stands for. */
function timeOf(event: unknown): number {
  const time = typeof event === 'object' && event !== null ? Reflect.get(event, 'scheduledTime') : undefined
  return typeof time === 'number' ? time : Date.now()
}
