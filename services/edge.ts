/** What the entry points share that live one invocation: Workers, Deno Deploy, anything that calls `fetch` and `scheduled`. Redis over REST only. */
import type { Broker } from '#shared/broker/broker.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createRestClient } from '#shared/broker/redis/rest.ts'
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

/** Answers for a service that is not set up: the log tells whoever runs it what is missing, the caller learns no more than that. */
export function misconfigured(error: unknown): Response {
  if (!(error instanceof ConfigError)) throw error
  createLogger('error').error('The settings are wrong.', { problems: error.message.split('\n') })
  const problem = {
    type: 'about:blank',
    title: 'Internal Server Error',
    status: 500,
    detail: 'The service is not set up: see its log.',
  }
  return new Response(JSON.stringify(problem), { status: 500, headers: { 'Content-Type': 'application/problem+json' } })
}

/** Bindings may be anything; settings are the texts among them. */
function textsOf(env: unknown): Record<string, string> {
  if (typeof env !== 'object' || env === null) return {}
  return Object.fromEntries(
    Object.entries(env).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
  )
}
