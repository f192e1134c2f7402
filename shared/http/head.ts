import type { MiddlewareHandler } from 'hono'

/** Says in the answer to a HEAD how long that to a GET would be: the server would say 0, for want of a body. */
export const sizeHead: MiddlewareHandler = async (c, next) => {
  if (c.req.method !== 'HEAD') return next()
  await next()
  if (c.res.body === null || c.res.headers.has('Content-Length')) return
  // A stream of events has no end.
  if (c.res.headers.get('Content-Type')?.startsWith('text/event-stream')) return
  c.header('Content-Length', String((await c.res.clone().arrayBuffer()).byteLength))
}
