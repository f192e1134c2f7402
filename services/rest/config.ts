import * as z from 'zod'
import { ConfigError } from '#shared/runtime/config.ts'
import { LOG_LEVELS, type LogSetting } from '#shared/runtime/log.ts'

/** Everything that the environment may set for the REST endpoint. It holds secrets: never log it whole. */
export interface RestConfig {
  /** The address that it listens on. */
  readonly host: string
  readonly port: number
  /** The Redis behind it; the URL may hold a password. */
  readonly redisUrl: string
  /** What callers must send. */
  readonly token: string
  readonly logLevel: LogSetting
}

const PORT = 'must be a whole number from 0 to 65535'

const environment = z.object({
  HOST: z.string().default('127.0.0.1'),
  REST_PORT: z
    .string()
    .regex(/^\d{1,5}$/, PORT)
    .transform(Number)
    .refine((port) => port <= 65_535, PORT)
    .default(8079),
  REDIS_URL: z
    .string('must be set')
    .regex(/^rediss?:\/\/[^\s,]+$/, 'must be the URL of one Redis, beginning with redis:// or rediss://'),
  REST_TOKEN: z
    .string('must be set: nobody is let in without a token')
    .regex(/^[\w.~+/=-]+$/, 'may use letters, digits and . _ ~ + / = -'),
  LOG_LEVEL: z.enum(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(', ')}`).default('info'),
})

/**
 * Reads the settings from an environment. An empty value counts as unset. Pure: it opens nothing.
 *
 * @throws ConfigError naming everything that is wrong, at once.
 */
export function loadRestConfig(env: Record<string, string | undefined>): RestConfig {
  const names = Object.keys(environment.shape)
  const given = Object.fromEntries(names.map((name) => [name, env[name]?.trim() || undefined]))
  const parsed = environment.safeParse(given)
  if (!parsed.success) {
    throw new ConfigError(parsed.error.issues.map((issue) => `${String(issue.path[0])} ${issue.message}`))
  }
  const { HOST, REST_PORT, REDIS_URL, REST_TOKEN, LOG_LEVEL } = parsed.data
  return { host: HOST, port: REST_PORT, redisUrl: REDIS_URL, token: REST_TOKEN, logLevel: LOG_LEVEL }
}
