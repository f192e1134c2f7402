import * as z from 'zod'
import { isCluster } from '#shared/broker/redis/client.ts'
import { TaskerError } from '#shared/task/errors.ts'
import {
  type DoorSettings,
  eachIsOrigin,
  isLoopback,
  OUTSIDE_RATE_LIMIT,
  readRateLimit,
  readTokens,
  type Token,
} from './doors.ts'
import { LOG_LEVELS, type LogSetting } from './log.ts'
import { decodeKey } from './seal.ts'

/** Everything that the environment may set. It holds secrets (keys, tokens, a store's password): never log it whole. */
export interface Config {
  /** The address that services listen on. */
  readonly host: string
  readonly creatorPort: number
  readonly managerPort: number
  /** Where callers reach the manager, without a slash at the end; null when it is not set. See `managerUrlOf`. */
  readonly managerUrl: string | null
  readonly store: StoreConfig
  readonly partitions: number
  readonly secret: SecretSource
  /** Empty: every request is let in. */
  readonly tokens: readonly Token[]
  readonly doors: DoorSettings
  readonly leaseMs: number
  /** Runs at once in one process; null: as each kind says. */
  readonly workerConcurrency: number | null
  /** Kinds that `services/workers/main.ts` serves; null: all. */
  readonly workerKinds: readonly string[] | null
  /** How often an idle worker looks for what no wake-up told it, and sweeps. */
  readonly workerPollMs: number
  readonly workerSweepMs: number
  /** How often a task that someone waits for is looked at, beside the store's events. */
  readonly waitPollMs: number
  /** How long running tasks may go on after a worker was told to stop. */
  readonly workerGraceMs: number
  /** A file that a worker process writes while it is well; null: none. */
  readonly workerHealthFile: string | null
  /** For workers that are called instead of waiting: what `POST /drain` asks for, and where it stops. */
  readonly drain: {
    readonly token: string | null
    readonly maxMs: number
    readonly maxTasks: number
    /** Requests that one invocation may make: 50 is the limit of Workers' free tier. */
    readonly maxRequests: number
  }
  /** Where to wake the workers of a kind; `*` stands for every kind that is not named. */
  readonly workerUrls: Readonly<Record<string, string>>
  readonly openai: { readonly baseUrl: string | null; readonly model: string }
  readonly logLevel: LogSetting
}

export type StoreConfig =
  | { readonly type: 'sqlite'; readonly path: string }
  /** `waitReplicas`: replicas that must have a change before it counts as stored. */
  | { readonly type: 'redis'; readonly url: string; readonly waitReplicas: number }
  | { readonly type: 'upstash'; readonly url: string; readonly token: string }

/** Where the keys come from that seal secret fields: given, in a file that is made when it is missing, made for this process alone, or nowhere. */
export type SecretSource =
  | { readonly type: 'keys'; readonly keys: readonly string[] }
  | { readonly type: 'file'; readonly path: string }
  | { readonly type: 'random' }
  | { readonly type: 'none' }

/** The environment does not make a configuration. The message has a line for each setting that is wrong, and never its value. */
export class ConfigError extends TaskerError {
  constructor(problems: readonly string[]) {
    super('config', problems.join('\n'))
  }
}

const whole = (least: number, most: number) =>
  z
    .string()
    .regex(/^\d+$/, `must be a whole number from ${least} to ${most}`)
    .transform(Number)
    .refine((value) => value >= least && value <= most, `must be a whole number from ${least} to ${most}`)

const httpUrl = z
  .url({ protocol: /^https?$/, error: 'must be a URL that begins with http:// or https://' })
  .transform((url) => url.replace(/\/+$/, ''))

const list = z
  .string()
  .transform((text) =>
    text
      .split(',')
      .map((entry) => entry.trim())
      .filter((entry) => entry !== ''),
  )
  // An empty text counts as unset: whoever writes commas alone meant something, which must not be taken for nothing.
  .refine((entries) => entries.length > 0, 'has commas and nothing between them: name something, or leave it unset')

const DAY_MS = 86_400_000

/** Over REST every command is billed: an idle worker stays below 1,000 a day. */
const PACE = {
  sqlite: { pollMs: 1_000, sweepMs: 1_000, waitPollMs: 1_000 },
  redis: { pollMs: 1_000, sweepMs: 1_000, waitPollMs: 1_000 },
  upstash: { pollMs: 360_000, sweepMs: 3_600_000, waitPollMs: 10_000 },
}

const environment = z.object({
  HOST: z.string().default('127.0.0.1'),
  CREATOR_PORT: whole(0, 65_535).default(5000),
  MANAGER_PORT: whole(0, 65_535).default(5001),
  MANAGER_URL: httpUrl.optional(),
  TASKER_DB: z.string().default('.tasker/tasker.db'),
  REDIS_URL: z
    .string()
    .regex(
      /^(rediss?|redis\+sentinel):\/\/./,
      'must be a URL that begins with redis://, rediss:// or redis+sentinel://',
    )
    .superRefine(eachIsNode)
    .optional(),
  UPSTASH_REDIS_REST_URL: httpUrl.optional(),
  UPSTASH_REDIS_REST_TOKEN: z.string().optional(),
  TASKER_WAIT_REPLICAS: whole(0, 100).default(0),
  TASKER_PARTITIONS: whole(1, 1024).default(1),
  TASKER_SECRET: list.pipe(z.array(z.string()).superRefine(eachIsKey)).optional(),
  TASKER_SECRET_FILE: z.string().optional(),
  TASKER_TOKENS: list.transform(readTokens).default([]),
  TASKER_HOSTS: list.transform((names) => names.map((name) => name.toLowerCase())).optional(),
  TASKER_OPEN: z.enum(['0', '1'], 'must be 0 or 1').default('0'),
  TASKER_RATE_LIMIT: z.string().transform(readRateLimit).optional(),
  TASKER_TRUST_PROXY: whole(0, 10).default(0),
  TASKER_CORS_ORIGINS: list.pipe(z.array(z.string()).superRefine(eachIsOrigin)).default([]),
  TASKER_MAX_WAITERS: whole(1, 1_000_000).default(1_000),
  TASKER_LEASE_MS: whole(100, DAY_MS).default(30_000),
  WORKER_CONCURRENCY: whole(1, 100_000).optional(),
  WORKER_KINDS: list.optional(),
  WORKER_POLL_MS: whole(10, DAY_MS).optional(),
  WORKER_SWEEP_MS: whole(10, DAY_MS).optional(),
  WORKER_GRACE_MS: whole(0, DAY_MS).default(10_000),
  WORKER_HEALTH_FILE: z.string().optional(),
  DRAIN_TOKEN: z.string().optional(),
  DRAIN_MAX_MS: whole(100, DAY_MS).default(25_000),
  DRAIN_MAX_TASKS: whole(1, 1_000_000).default(10_000),
  DRAIN_MAX_REQUESTS: whole(20, 1_000_000).default(45),
  WORKER_URLS: list.transform(readWorkerUrls).default({}),
  OPENAI_BASE_URL: httpUrl.optional(),
  OPENAI_MODEL: z.string().default('gpt-6-luna'),
  LOG_LEVEL: z.enum(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(', ')}`).default('info'),
})

/** The names of all settings. */
export const SETTINGS: readonly string[] = Object.keys(environment.shape)

/**
 * Reads the settings from an environment. An empty value counts as unset. Pure: it opens and makes nothing.
 *
 * @throws ConfigError naming everything that is wrong, at once.
 */
export function loadConfig(env: Record<string, string | undefined>): Config {
  const given = Object.fromEntries(SETTINGS.map((name) => [name, env[name]?.trim() || undefined]))
  const parsed = environment.safeParse(given)
  const problems = parsed.error?.issues.map((issue) => `${String(issue.path[0])} ${issue.message}`) ?? []
  if (!given['REDIS_URL'] && !given['UPSTASH_REDIS_REST_URL'] !== !given['UPSTASH_REDIS_REST_TOKEN']) {
    problems.push('UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN must be set together')
  }
  const onCluster = isCluster(given['REDIS_URL'] ?? '')
  if (onCluster && Number(given['TASKER_PARTITIONS'] ?? 1) < 2) {
    problems.push('REDIS_URL names the nodes of a Cluster: set TASKER_PARTITIONS to 2 or more, the same everywhere')
  }
  if (!parsed.success || problems.length > 0) throw new ConfigError(problems)
  return toConfig(parsed.data)
}

function toConfig(env: z.output<typeof environment>): Config {
  const store = storeOf(env)
  return {
    host: env.HOST,
    creatorPort: env.CREATOR_PORT,
    managerPort: env.MANAGER_PORT,
    managerUrl: env.MANAGER_URL ?? null,
    store,
    partitions: env.TASKER_PARTITIONS,
    secret: secretOf(env, store),
    tokens: env.TASKER_TOKENS,
    doors: {
      open: env.TASKER_OPEN === '1',
      hosts:
        env.TASKER_HOSTS ??
        (isLoopback(env.HOST) && env.TASKER_TOKENS.length === 0 && env.TASKER_OPEN === '0' ? [] : null),
      rateLimit: env.TASKER_RATE_LIMIT === undefined ? rateLimitAt(env.HOST) : env.TASKER_RATE_LIMIT,
      trustedProxies: env.TASKER_TRUST_PROXY,
      corsOrigins: env.TASKER_CORS_ORIGINS,
      maxWaiters: env.TASKER_MAX_WAITERS,
    },
    leaseMs: env.TASKER_LEASE_MS,
    workerConcurrency: env.WORKER_CONCURRENCY ?? null,
    workerKinds: env.WORKER_KINDS ?? null,
    workerPollMs: env.WORKER_POLL_MS ?? PACE[store.type].pollMs,
    workerSweepMs: env.WORKER_SWEEP_MS ?? PACE[store.type].sweepMs,
    waitPollMs: PACE[store.type].waitPollMs,
    workerGraceMs: env.WORKER_GRACE_MS,
    workerHealthFile: env.WORKER_HEALTH_FILE ?? null,
    drain: {
      token: env.DRAIN_TOKEN ?? null,
      maxMs: env.DRAIN_MAX_MS,
      maxTasks: env.DRAIN_MAX_TASKS,
      maxRequests: env.DRAIN_MAX_REQUESTS,
    },
    workerUrls: env.WORKER_URLS,
    openai: { baseUrl: env.OPENAI_BASE_URL ?? null, model: env.OPENAI_MODEL },
    logLevel: env.LOG_LEVEL,
  }
}

function storeOf(env: z.output<typeof environment>): StoreConfig {
  if (env.REDIS_URL) return { type: 'redis', url: env.REDIS_URL, waitReplicas: env.TASKER_WAIT_REPLICAS }
  if (env.UPSTASH_REDIS_REST_URL && env.UPSTASH_REDIS_REST_TOKEN) {
    return { type: 'upstash', url: env.UPSTASH_REDIS_REST_URL, token: env.UPSTASH_REDIS_REST_TOKEN }
  }
  return { type: 'sqlite', path: env.TASKER_DB }
}

function secretOf(env: z.output<typeof environment>, store: StoreConfig): SecretSource {
  if (env.TASKER_SECRET) return { type: 'keys', keys: env.TASKER_SECRET }
  if (env.TASKER_SECRET_FILE) return { type: 'file', path: env.TASKER_SECRET_FILE }
  if (store.type !== 'sqlite') return { type: 'none' }
  return store.path === ':memory:' ? { type: 'random' } : { type: 'file', path: `${store.path}.key` }
}

function eachIsKey(keys: readonly string[], context: z.RefinementCtx): void {
  keys.forEach((key, index) => {
    if (decodeKey(key) !== null) return
    context.addIssue(`entry ${index + 1} is not 32 bytes in base64: make one with openssl rand -base64 32`)
  })
}

/**
 * What a URL would take for something else, and connect elsewhere or to another database. Sentinels are read by hand,
 * and only a second @ misleads there.
 */
function eachIsNode(url: string, context: z.RefinementCtx): void {
  const isWatched = url.startsWith('redis+sentinel://')
  const nodes = (isWatched ? [url] : url.split(',')).map((node) => node.trim().replace(/^[^@]*?:\/\//, ''))
  const isCut = isWatched ? /@.*@/ : /#|[/?].*@/
  if (nodes.some((node) => isCut.test(node))) {
    context.addIssue(
      'has a #, /, ? or @ where a URL does not allow one: percent-encode the password (%23, %2F, %3F, %40)',
    )
  } else if (!isWatched && nodes.some((node) => !/^[^/?]*(\/\d*)?(\?.*)?$/.test(node))) {
    context.addIssue('must end with the number of a database behind the slash, or without one: redis://HOST:PORT/0')
  }
}

function readWorkerUrls(entries: readonly string[], context: z.RefinementCtx): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry, index) => {
      const [, kind = '*', url = ''] = /^(?:([a-z][a-z0-9_-]*)=)?(.*)$/.exec(entry) ?? []
      const parsed = httpUrl.safeParse(url)
      if (!parsed.success) {
        context.addIssue(`entry ${index + 1} must be a URL, or kind=URL, that begins with http:// or https://`)
      }
      return [kind, parsed.data ?? '']
    }),
  )
}

function rateLimitAt(host: string) {
  return isLoopback(host) ? null : OUTSIDE_RATE_LIMIT
}

/** Where callers reach a manager on the same machine; null when that is not set, and it listens on every address: then only a caller knows by which it came. */
export function managerUrlOf({ managerUrl, host, managerPort }: Config): string | null {
  if (managerUrl !== null) return managerUrl
  if (isEveryAddress(host)) return null
  const name = isLoopback(host) ? 'localhost' : host.includes(':') ? `[${host}]` : host
  return `http://${name}:${managerPort}`
}

function isEveryAddress(host: string): boolean {
  return /^[0:.[\]]*$/.test(host)
}
