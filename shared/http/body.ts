import type { Context, MiddlewareHandler } from 'hono'
import { accepts } from 'hono/accepts'
import { bodyLimit } from 'hono/body-limit'
import { Problem } from './problem.ts'

/** Bytes that a request body may have. */
export const MAX_BODY = 1024 * 1024

/** 413 for a body over {@link MAX_BODY}, by its stated length or, when it has none, as it arrives. */
export function limitBody(): MiddlewareHandler {
  return bodyLimit({
    maxSize: MAX_BODY,
    onError: () => {
      throw new Problem('too_large', `The body may have ${MAX_BODY} bytes.`)
    },
  })
}

/** 415 for a body that does not say it is JSON. It also keeps pages of other sites from posting to a local service: they would need leave first. */
export const jsonOnly: MiddlewareHandler = (c, next) => {
  const type = c.req.header('Content-Type')
  const isJson = type?.split(';')[0]?.trim().toLowerCase() === 'application/json'
  if (isJson || (type === undefined && c.req.raw.body === null)) return next()
  throw new Problem('unsupported_media_type', 'The body must be JSON: send Content-Type: application/json.')
}

/**
 * The body as JSON.
 *
 * @throws Problem with code `malformed` when it is not JSON. It does not quote the body, which may hold secrets.
 */
export async function readJson(c: Context): Promise<unknown> {
  const text = await c.req.text()
  if (text.trim() === '') throw new Problem('malformed', 'The body is empty: it must be JSON.')
  try {
    return JSON.parse(text)
  } catch (error) {
    const position = /at position (\d+)/.exec(String(error))?.[1]
    throw new Problem('malformed', `The body is not valid JSON${position ? `: see character ${position}` : ''}.`)
  }
}

/** True when the caller prefers the plain form over JSON. */
export function wantsText(c: Context): boolean {
  const supports = ['application/json', 'text/plain']
  return accepts(c, { header: 'Accept', supports, default: 'application/json' }) === 'text/plain'
}
