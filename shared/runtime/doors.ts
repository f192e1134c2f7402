import type * as z from 'zod'

/** Who may come in, from where, and how often: the settings of the HTTP services that guard them. */
export interface DoorSettings {
  /** Whether a service may be open to others than this machine without tokens. */
  readonly open: boolean
  /**
   * Names that requests may call a service by, beside those of its own machine; null: any. A page elsewhere can point a name of its own at a
   * service (DNS rebinding), and would be let in without tokens.
   */
  readonly hosts: readonly string[] | null
  /** For each token, or each client address where none is needed; null: as many as come. */
  readonly rateLimit: RateLimit | null
  /** How many proxies stand in front: so many entries at the end of `X-Forwarded-For` are believed. */
  readonly trustedProxies: number
  /** Origins whose pages may use the services; `*` is every one. */
  readonly corsOrigins: readonly string[]
  /** Requests that may wait for a task's end at the same time. */
  readonly maxWaiters: number
}

/** So many requests a second in the long run, and `burst` of them at once. */
export interface RateLimit {
  readonly perSecond: number
  readonly burst: number
}

export const SCOPES = ['create', 'read', 'manage'] as const
export type Scope = (typeof SCOPES)[number]

export interface Token {
  /** The token, or `sha256:` and its digest in hex. */
  readonly token: string
  readonly scopes: readonly Scope[]
}

/** What a service has that listens on other than loopback and is told nothing else. */
export const OUTSIDE_RATE_LIMIT: RateLimit = { perSecond: 1_000, burst: 2_000 }

const PLAIN_TOKEN = /^[\w.~+/-]+$/
const HASHED_TOKEN = /^sha256:[0-9a-f]{64}$/

/** Tokens as `token=scope+scope`. A message never quotes an entry: what looks like a scope may be a part of the token. */
export function readTokens(entries: readonly string[], context: z.RefinementCtx): Token[] {
  return entries.map((entry, index) => {
    const at = entry.indexOf('=')
    const token = at < 0 ? entry : entry.slice(0, at)
    const named = at < 0 ? SCOPES : entry.slice(at + 1).split('+')
    const scopes = SCOPES.filter((scope) => named.includes(scope))
    if (token.startsWith('sha256:') && !HASHED_TOKEN.test(token)) {
      context.addIssue(`entry ${index + 1} has no digest of 64 small hex digits after sha256:`)
    } else if (!PLAIN_TOKEN.test(token) && !HASHED_TOKEN.test(token)) {
      context.addIssue(`entry ${index + 1} may use letters, digits and . _ ~ + / - in the token`)
    }
    if (named.some((name) => !SCOPES.some((scope) => scope === name))) {
      context.addIssue(`entry ${index + 1} names an unknown scope: write token=scope+scope, of ${SCOPES.join(', ')}`)
    }
    return { token, scopes }
  })
}

/** `100` or `100:500`: requests a second, and at once; `0` is no limit. */
export function readRateLimit(text: string, context: z.RefinementCtx): RateLimit | null {
  const [, rate, burst] = /^(\d{1,7})(?::(\d{1,7}))?$/.exec(text) ?? []
  const perSecond = Number(rate)
  const atOnce = burst === undefined ? perSecond : Number(burst)
  if (rate === undefined || (perSecond === 0) !== (atOnce === 0)) {
    context.addIssue('must be requests a second, such as 100, or with a burst, such as 100:500; 0 is no limit')
  }
  return perSecond === 0 ? null : { perSecond, burst: atOnce }
}

/** Origins as a browser sends them: without a path. */
export function eachIsOrigin(origins: readonly string[], context: z.RefinementCtx): void {
  origins.forEach((origin, index) => {
    if (origin === '*' || (/^https?:\/\//.test(origin) && URL.parse(origin)?.origin === origin)) return
    context.addIssue(`entry ${index + 1} must be an origin such as https://tasks.example, without a path, or *`)
  })
}

/** True when only this machine can connect to the address. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){1,3}$/.test(host)
}
