import { type Context, Hono, type MiddlewareHandler } from 'hono'
import { methodNotAllowed } from 'hono/method-not-allowed'
import { requestId } from 'hono/request-id'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import type { Log } from '#shared/runtime/log.ts'
import type { Auth } from './auth.ts'
import { type BaseEnv, limitBodies } from './body.ts'
import {
  allowOrigins,
  type Doors,
  limitRate,
  PLAIN_DOORS,
  refuseBadHost,
  refuseForeignPages,
  refuseStrangeHosts,
  safeHeaders,
} from './doors.ts'
import { sizeHead } from './head.ts'
import { Problem, problemAnswer } from './problem.ts'

export type { BaseEnv }

export interface BaseOptions {
  /** Names the service in `GET /` and in the log. */
  service: string
  /** What `GET /` says beside the name. */
  about: Record<string, unknown>
  log: Log
  /** Resolves when the service can work (the store answers): `GET /readyz`. */
  ready: () => Promise<void>
  /** What a 404 for an unknown path tells the caller. */
  unknownPath: string
  doors?: Doors | undefined
  /** Tells whose a request is, so that the limit of requests is each token's own. */
  auth?: Auth | null
}

/**
 * What every service has: request ids, an access log, safe headers, limits of requests and bodies, errors as problem+json, `GET /`, `/healthz` and `/readyz`.
 * Routes added to it throw; nothing they throw reaches the caller but as a problem.
 */
export function createBase(options: BaseOptions): Hono<BaseEnv> {
  const { log, service, doors = PLAIN_DOORS, auth = null } = options
  const app = new Hono<BaseEnv>()

  app.onError((error, c) => {
    const response = respond(c, error)
    if (response.status >= 500) {
      const request = { service, request_id: c.get('requestId'), method: c.req.method, path: c.req.path }
      log.error('A request failed.', { ...request, ...described(error, response.status) })
    }
    return response
  })
  app.notFound((c) => respond(c, new Problem('not_found', options.unknownPath)))

  app.use(requestId())
  app.use(accessLog(log, service))
  app.use(sizeHead)
  app.use(safeHeaders())
  app.use(refuseBadHost)
  const hosts = refuseStrangeHosts(doors)
  if (hosts) app.use(hosts)
  const origins = allowOrigins(doors)
  if (origins) app.use(origins)
  app.use(limitRate(doors, auth))
  app.use(refuseForeignPages(doors))
  app.use(
    methodNotAllowed({
      app,
      onMethodNotAllowed: (c, methods) => {
        const detail = `${c.req.method} is not possible here: use ${methods.join(' or ')}.`
        return respond(c, new Problem('method_not_allowed', detail, { headers: { Allow: methods.join(', ') } }))
      },
    }),
  )
  app.use(limitBodies())

  app.get('/', (c) => c.json({ service, ...options.about }))
  app.get('/healthz', (c) => c.json({ status: 'alive' }))
  app.get('/readyz', async (c) => {
    await options.ready()
    return c.json({ status: 'ready' })
  })
  return app
}

// Refusals are worth a line by default; what went well is there when someone looks.
function accessLog(log: Log, service: string): MiddlewareHandler<BaseEnv> {
  return async (c, next) => {
    const startedAt = performance.now()
    await next()
    const { status } = c.res
    log[status >= 400 ? 'info' : 'debug']('Answered a request.', {
      service,
      request_id: c.get('requestId'),
      method: c.req.method,
      path: c.req.path,
      status,
      duration_ms: Math.round((performance.now() - startedAt) * 10) / 10,
    })
  }
}

// Built by the context, which adds the headers that were set before, such as X-Request-Id.
function respond(c: Context, error: unknown): Response {
  const { status, headers, body } = problemAnswer(error, c.req.url)
  return c.body(body, status as ContentfulStatusCode, headers)
}

/** What the log says of an error. A stack only for one that nobody foresaw. */
function described(error: Error, status: number): Record<string, unknown> {
  const cause = error.cause instanceof Error ? { cause: error.cause.message } : {}
  return { error: `${error.name}: ${error.message}`, ...cause, ...(status === 500 ? { stack: error.stack } : {}) }
}
