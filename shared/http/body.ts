import type { Context, MiddlewareHandler } from 'hono'
import { accepts } from 'hono/accepts'
import { Problem } from './problem.ts'

/** Bytes that a request body may have. */
export const MAX_BODY = 1024 * 1024

/** 413 for a body that says it is over {@link MAX_BODY}. One that does not say is counted while it is read, and not read when nobody asks for it. */
export const limitBody: MiddlewareHandler = (c, next) => {
  if (Number(c.req.header('Content-Length') ?? 0) > MAX_BODY) throw tooLarge()
  return next()
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
