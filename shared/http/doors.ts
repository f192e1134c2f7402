import type { Context, MiddlewareHandler } from 'hono'
import { cors } from 'hono/cors'
import { secureHeaders } from 'hono/secure-headers'
import { type DoorSettings, isLoopback } from '#shared/runtime/doors.ts'
import { type Auth, bearerOf } from './auth.ts'
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

/** A name, an IPv4 address or an IPv6 address in brackets, each perhaps with a port. */
const HOST = /^([\w.~-]+|\[[\da-f:.]+\])(:\d{0,5})?$/i

/**
 * 400 for a `Host` that is none, or that is there twice: the proxy in front may have read another one. HTTP/1.0 needs
 * none, and health checks often send none.
 */
export const refuseBadHost: MiddlewareHandler = (c, next) => {
  const host = c.req.header('Host')
  if (!host || HOST.test(host)) return next()
  throw new Problem('malformed', 'The Host header must name one host, perhaps with a port, and be there once.')
}

/** What may be asked without a name: a page whose name points here always sends it. */
const NAMELESS = ['/healthz', '/readyz']

/** 421 for requests that call the service by a name that is neither its machine's nor given to it; null when any name will do. */
export function refuseStrangeHosts({ hosts }: Doors): MiddlewareHandler | null {
  if (hosts === null) return null
  return (c, next) => {
    const host = c.req.header('Host')
    const isKnown = host ? isLoopback(nameOf(host)) || hosts.includes(nameOf(host)) : NAMELESS.includes(c.req.path)
    if (isKnown) return next()
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

const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS']

/**
 * 403 for a request that may change something and that a page of another site has made a browser send. One without a
 * body needs no leave of the service (no preflight), and a local service has no other guard. Browsers say where a page
 * is from, in `Sec-Fetch-Site` or, older ones, in `Origin`; what says neither is no browser. No page can add a bearer
 * token without leave. `same-site` is no leave: every port of localhost is one site.
 */
export function refuseForeignPages({ corsOrigins, hosts }: Doors): MiddlewareHandler {
  return (c, next) => {
    if (SAFE_METHODS.includes(c.req.method) || bearerOf(c) !== undefined) return next()
    const origin = c.req.header('Origin')
    if (origin !== undefined && (corsOrigins.includes('*') || corsOrigins.includes(origin))) return next()
    const site = c.req.header('Sec-Fetch-Site')
    const isOurs =
      site === undefined
        ? origin === undefined || isHostOf(origin, [c.req.header('Host') ?? '', ...(hosts ?? [])])
        : site === 'same-origin' || site === 'none'
    if (isOurs) return next()
    const detail =
      'A page of another site may not change anything here: name its origin in TASKER_CORS_ORIGINS if that is meant.'
    throw new Problem('cross_site', detail)
  }
}

/** Whether an `Origin` is that of one of these hosts, each with its port unless that is the scheme's own. */
function isHostOf(origin: string, hosts: readonly string[]): boolean {
  const url = URL.parse(origin)
  if (url?.origin !== origin) return false
  return hosts.some((host) => host !== '' && URL.parse(`${url.protocol}//${host}`)?.host === url.host)
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
  return typeof address === 'string' ? networkOf(withoutPort(address)) : null
}

/**
 * Some proxies write the port too, of which each connection has its own: `192.0.2.1:50000`, `[2001:db8::1]:50000`,
 * perhaps in quotes.
 */
function withoutPort(address: string): string {
  const text = address.slice(0, 64).replaceAll('"', '')
  const bracketed = /^\[([^\]]*)\]/.exec(text)?.[1]
  return (bracketed ?? text.replace(/^([^:]*):\d+$/, '$1')).replace(/%.*$/, '')
}

function networkOf(address: string): string {
  const [head = '', tail] = address.toLowerCase().split('::')
  if (!address.includes(':')) return address
  const groups = groupsOf(head)
  const after = groupsOf(tail ?? '')
  const all = [...groups, ...Array(Math.max(0, 8 - groups.length - after.length)).fill(0), ...after]
  // An IPv4 address in the form of an IPv6 one is an address of its own, and no network.
  if (all.slice(0, 5).every((group) => group === 0) && all[5] === 0xffff) {
    return all
      .slice(6, 8)
      .flatMap((group) => [group >> 8, group & 0xff])
      .join('.')
  }
  return all
    .slice(0, 4)
    .map((group) => group.toString(16))
    .join(':')
}

/** The groups of a part of an IPv6 address, of which the last two may be written as an IPv4 address. */
function groupsOf(part: string): number[] {
  return part
    .split(':')
    .filter((group) => group !== '')
    .flatMap((group) => {
      const [a, b, c, d] = group.split('.').map(Number)
      if (a === undefined || b === undefined || c === undefined || d === undefined)
        return Number.parseInt(group, 16) || 0
      return [(a << 8) | b, (c << 8) | d]
    })
}
