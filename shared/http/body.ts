import type { Context, MiddlewareHandler } from 'hono'
import { accepts } from 'hono/accepts'
import type { RequestIdVariables } from 'hono/request-id'
import { Problem } from './problem.ts'

export type BaseEnv = { Variables: RequestIdVariables & { body?: BodyUnderWay } }

/** What is counted of a body until its request is answered. */
interface BodyUnderWay {
  /** Counts bytes. @throws Problem when they are too many, along with those of other requests. */
  hold(bytes: number): void
}

/** Bytes that a request body may have. */
export const MAX_BODY = 1024 * 1024

/**
 * Bytes that the bodies of requests under way may have together in one process: a request needs a few times as much
 * memory as its body.
 */
export const MAX_BODIES = 16 * MAX_BODY

/**
 * A body over so many bytes leaves a quarter of {@link MAX_BODIES} to others, lest a few large ones that do not
 * arrive keep out the many.
 */
const SMALL_BODY = MAX_BODY / 16

/**
 * 413 for a body that says it is over {@link MAX_BODY}, and 503 for one that would be too much along with those of
 * other requests. One that does not state its size is counted while it is read, and not read when nobody asks for it.
 */
export function limitBodies(): MiddlewareHandler<BaseEnv> {
  let held = 0
  return async (c, next) => {
    const stated = c.req.header('Transfer-Encoding') === undefined ? Number(c.req.header('Content-Length') ?? 0) : 0
    if (stated > MAX_BODY) throw tooLarge()
    let mine = 0
    const hold = (bytes: number) => {
      if (held + bytes > (mine + bytes > SMALL_BODY ? 0.75 * MAX_BODIES : MAX_BODIES)) throw tooMany()
      held += bytes
      mine += bytes
    }
    if (stated > 0) hold(stated)
    c.set('body', { hold })
    try {
      await next()
    } finally {
      held -= mine
    }
  }
}

/** Ends the connection, too: what is still to come is not read. */
function tooMany(): Problem {
  const detail =
    'The bodies of other requests are too much already. Nothing was accepted: send the request again later.'
  return new Problem('too_many_bodies', detail, { headers: { 'Retry-After': '1', Connection: 'close' } })
}

export function tooLarge(): Problem {
  return new Problem('too_large', `The body may have ${MAX_BODY} bytes.`)
}

/** 415 for a body that does not say it is JSON, or is packed. It also keeps pages of other sites from posting to a local service: they would need leave first. */
export const jsonOnly: MiddlewareHandler = (c, next) => {
  const coding = c.req.header('Content-Encoding')?.trim().toLowerCase()
  if (coding && coding !== 'identity') {
    throw new Problem('unsupported_media_type', 'The body must not be compressed: leave out Content-Encoding.', {
      headers: { 'Accept-Encoding': 'identity' },
    })
  }
  const type = c.req.header('Content-Type')
  const isJson = type?.split(';')[0]?.trim().toLowerCase() === 'application/json'
  if (isJson || (type === undefined && c.req.raw.body === null)) return next()
  throw new Problem('unsupported_media_type', 'The body must be JSON: send Content-Type: application/json.')
}

/** True when the caller prefers the plain form over JSON. */
export function wantsText(c: Context): boolean {
  const supports = ['application/json', 'text/plain']
  return accepts(c, { header: 'Accept', supports, default: 'application/json' }) === 'text/plain'
}
