/** What the entry points share that live one invocation: Workers, Deno Deploy, anything that calls `fetch` and `scheduled`. Redis over REST only. */
import type { Broker } from '#shared/broker/broker.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createRestClient } from '#shared/broker/redis/rest.ts'
import { createDoors, type Doors } from '#shared/http/doors.ts'
import { Problem, problemAnswer } from '#shared/http/problem.ts'
import { type Config, ConfigError, loadConfig } from '#shared/runtime/config.ts'
import { createLogger, type Log } from '#shared/runtime/log.ts'
import { createKeyring, type Keyring } from '#shared/runtime/seal.ts'

/** What a runtime gives to an invocation: some let work go on after the answer. */
export interface EdgeContext {
  waitUntil?(work: Promise<unknown>): void
}

export interface EdgeModule {
  fetch(request: Request, env?: unknown, context?: EdgeContext): Promise<Response>
  scheduled?(event: unknown, env?: unknown, context?: EdgeContext): Promise<void>
}

/** What one invocation works with. */
export interface Invocation {
  readonly config: Config
  readonly broker: Broker
  readonly keyring: Keyring | null
  readonly log: Log
  /** Requests to the store, and those that were counted with `count`. */
  readonly requests: () => number
  readonly count: () => void
  /** Keeps the invocation alive until the work is done, after the answer too. */
  readonly waitUntil: (work: Promise<unknown>) => void
}

/**
 * Opens what an invocation needs, from its bindings and, where there is one, the environment.
 *
 * @throws ConfigError naming what is missing.
 */
export async function openInvocation(env: unknown, context: EdgeContext | undefined): Promise<Invocation> {
  const config = loadConfig({ ...globalThis.process?.env, ...textsOf(env), REDIS_URL: undefined })
  const { store, secret } = config
  if (store.type !== 'upstash') {
    throw new ConfigError([
      'Set UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN: the edge reaches Redis over REST only',
    ])
  }
  const log = createLogger(config.logLevel)
  let requests = 0
  const count = () => {
    requests++
  }
  const client = createRestClient({ url: store.url, token: store.token, onRequest: count })
  return {
    ...{ config, log, count },
    broker: createRedisBroker(client, { partitions: config.partitions }),
    keyring: secret.type === 'keys' ? await createKeyring(secret.keys) : null,
    requests: () => requests,
    waitUntil(work) {
      const safe = work.catch((error: unknown) => log.error('Work after the answer failed.', { error: String(error) }))
      context?.waitUntil?.(safe)
    },
  }
}

/** Keeps the doors of an instance from one invocation to the next, with the requests that they have counted. */
export function createDoorkeeper(): (config: Config) => Doors {
  let kept: { settings: string; doors: Doors } | null = null
  return ({ doors }) => {
    const settings = JSON.stringify(doors)
    if (kept?.settings !== settings) kept = { settings, doors: createDoors(doors) }
    return kept.doors
  }
}

/** Refuses everything but `GET /healthz` where anybody may come in, and nobody said that this is meant; else null. */
export function refuseOpen(request: Request, { config, log }: Pick<Invocation, 'config' | 'log'>): Response | null {
  const { pathname } = new URL(request.url)
  if (config.tokens.length > 0 || config.doors.open || pathname === '/healthz') return null
  log.error('Anybody may use this service: set TASKER_TOKENS, or TASKER_OPEN=1 if that is meant.', { path: pathname })
  return problemResponse(new Problem('not_guarded', 'The service is not set up: see its log.'), request.url)
}

/** Answers for a service that is not set up: the log tells whoever runs it what is missing, the caller learns no more than that. */
export function misconfigured(error: unknown): Response {
  if (!(error instanceof ConfigError)) throw error
  createLogger('error').error('The settings are wrong.', { problems: error.message.split('\n') })
  return problemResponse(new Problem('misconfigured', 'The service is not set up: see its log.'))
}

function problemResponse(error: Problem, url?: string): Response {
  const { status, headers, body } = problemAnswer(error, url)
  const safe = { 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff' }
  return new Response(body, { status, headers: { ...headers, ...safe } })
}

/** Bindings may be anything; settings are the texts among them. */
function textsOf(env: unknown): Record<string, string> {
  if (typeof env !== 'object' || env === null) return {}
  return Object.fromEntries(
    Object.entries(env).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
  )
}
