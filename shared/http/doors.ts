import type { Context, MiddlewareHandler } from 'hono'
import { cors } from 'hono/cors'
import { secureHeaders } from 'hono/secure-headers'
import { type DoorSettings, isLoopback } from '#shared/runtime/doors.ts'
import type { Auth } from './auth.ts'
import { createLimiter, type Limiter } from './limiter.ts'
import { Problem } from './problem.ts'

/** What stands before every route of a service. */
export interface Doors {
  /** Null: as many requests as come. */
  readonly limiter: Limiter | null
  readonly trustedProxies: number
  readonly corsOrigins: readonly string[]
  readonly hosts: readonly string[] | null
}

/** One limiter for all requests of a process: where an app is made for each request, its doors are not. */
export function createDoors(settings: DoorSettings): Doors {
  const { rateLimit, trustedProxies, corsOrigins, hosts } = settings
  const limiter = rateLimit === null ? null : createLimiter(rateLimit)
  return { limiter, trustedProxies, corsOrigins, hosts }
}

/** Without limits, proxies and foreign pages. */
export const PLAIN_DOORS: Doors = { limiter: null, trustedProxies: 0, corsOrigins: [], hosts: null }

/** Headers that keep browsers from doing more with an answer than showing it, and caches from keeping it. A route may say otherwise of the cache. */
export function safeHeaders(): MiddlewareHandler {
  const secure = secureHeaders({
    contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
    xFrameOptions: 'DENY',
    // Whether a host is reached over TLS alone is for whoever runs its TLS to say.
    strictTransportSecurity: false,
    // These say nothing more of what is no page, and each costs every answer a little.
    ...{
      crossOriginOpenerPolicy: false,
      originAgentCluster: false,
      removePoweredBy: false,
      xDnsPrefetchControl: false,
    },
    ...{ xDownloadOptions: false, xPermittedCrossDomainPolicies: false, xXssProtection: false },
  })
  return (c, next) => {
    c.header('Cache-Control', 'no-store')
    return secure(c, next)
  }
}

/** 421 for requests that call the service by a name that is neither its machine's nor given to it; null when any name will do. */
export function refuseStrangeHosts({ hosts }: Doors): MiddlewareHandler | null {
  if (hosts === null) return null
  return (c, next) => {
    const host = c.req.header('Host')
    if (host === undefined || isLoopback(nameOf(host)) || hosts.includes(nameOf(host))) return next()
    const names = ['localhost', ...hosts].join(', ')
    const detail = `This service is called ${names}, and by no other name: see TASKER_HOSTS. To open it to others set TASKER_TOKENS, or TASKER_OPEN=1.`
    throw new Problem('misdirected', detail)
  }
}

/** A `Host` without its port, in the form of a setting. Browsers take every name below `localhost` for this machine. */
function nameOf(host: string): string {
  const name = host.toLowerCase().replace(/:\d+$/, '')
  return /\.localhost$/.test(name) ? 'localhost' : name.replace(/^\[(.*)\]$/, '$1')
}

/** Lets pages of the named origins use the service; null when there are none. */
export function allowOrigins({ corsOrigins }: Doors): MiddlewareHandler | null {
  if (corsOrigins.length === 0) return null
  return cors({
    origin: corsOrigins.includes('*') ? '*' : [...corsOrigins],
    allowMethods: ['GET', 'HEAD', 'POST', 'DELETE'],
    allowHeaders: ['Authorization', 'Content-Type', 'Idempotency-Key', 'X-Request-Id', 'traceparent'],
    exposeHeaders: ['Location', 'Idempotent-Replayed', 'RateLimit', 'Retry-After', 'WWW-Authenticate', 'X-Request-Id'],
    maxAge: 600,
  })
}

/**
 * 429 for requests beyond the limit of their token or, without a valid one, of their address. `/healthz` is free. A caller whose address the runtime
 * does not tell is not limited.
 */
export function limitRate({ limiter, trustedProxies }: Doors, auth: Auth | null): MiddlewareHandler {
  return async (c, next) => {
    if (limiter === null || c.req.path === '/healthz') return next()
    const caller = await auth?.callerOf(c)
    const address = caller ? null : addressOf(c, trustedProxies)
    if (!caller && address === null) return next()
    const { allowed, remaining, retryAfterMs } = limiter.take(caller ? `token ${caller.index}` : `address ${address}`)
    const { perSecond, burst } = limiter.limit
    const seconds = Math.ceil(retryAfterMs / 1000)
    c.header('RateLimit-Policy', `"default";q=${burst};w=${Math.ceil(burst / perSecond)}`)
    c.header('RateLimit', `"default";r=${remaining};t=${seconds}`)
    if (allowed) return next()
    const whose = caller ? 'this token' : 'this address'
    throw new Problem('too_many_requests', `Too many requests with ${whose}: ${perSecond} a second are allowed.`, {
      headers: { 'Retry-After': String(Math.max(1, seconds)) },
    })
  }
}

/** The client's address: that of the connection, or what the last trusted proxy wrote. An IPv6 network of one customer (/64) counts as one. */
function addressOf(c: Context, trustedProxies: number): string | null {
  const forwarded = trustedProxies > 0 ? (c.req.header('X-Forwarded-For')?.split(',') ?? []) : []
  const claimed = forwarded.at(-trustedProxies)?.trim() ?? forwarded[0]?.trim()
  const connection: unknown = Reflect.get(Object(c.env), 'address')
  const address = claimed || (typeof connection === 'function' ? connection() : null)
  return typeof address === 'string' ? networkOf(address) : null
}

function networkOf(address: string): string {
  const text = address.slice(0, 64).replace(/^::ffff:(?=\d+\.)/i, '')
  if (!text.includes(':')) return text
  const [head = '', tail] = text.toLowerCase().split('::')
  const groups = head.split(':').filter((group) => group !== '')
  const after = tail?.split(':').filter((group) => group !== '') ?? []
  const zeros = Array(Math.max(0, 8 - groups.length - after.length)).fill('0')
  return [...groups, ...zeros, ...after].slice(0, 4).join(':')
}
