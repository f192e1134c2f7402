import { type Context, Hono } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import type { Auth } from '#shared/http/auth.ts'
import { refuseBadHost } from '#shared/http/doors.ts'
import { sizeHead } from '#shared/http/head.ts'
import { Problem } from '#shared/http/problem.ts'
import type { Log } from '#shared/runtime/log.ts'
import { BadRequest, type Command, commandOfUrl, parseCommand, parseCommands, pathArguments } from './command.ts'
import { type Connection, NoReply } from './connection.ts'
import { createExecutor } from './execute.ts'
import { type Bill, createMetrics } from './metrics.ts'
import { answerJson, type Encoding, type Reply, toResp2 } from './reply.ts'
import type { Streams } from './stream.ts'
import type { Kind } from './subscriptions.ts'

export interface RestDeps {
  connection: Connection
  streams: Streams
  /** Knows who is let in. */
  auth: Auth
  log: Log
}

/** Bytes that a request body may have, as at Upstash. */
export const MAX_BODY = 10 * 1024 * 1024

/** The header that says how many commands an answer cost, as Upstash would bill them. */
export const BILLED = 'Rest-Commands-Billed'

type Env = { Variables: { bill: Bill } }

/**
 * Upstash's REST protocol: `POST /` and `/<command>/<argument>/…` run a command, `POST /pipeline` and `POST /multi-exec` several, and
 * `/subscribe/<channel>` and `/psubscribe/<pattern>` stream messages. All but `GET /healthz` need the token.
 */
export function createApp({ connection, streams, auth, log }: RestDeps): Hono<Env> {
  const executor = createExecutor(connection)
  const metrics = createMetrics()
  const app = new Hono<Env>()
  // Readers compare it for equality only; other than at Upstash there is nothing to wait for.
  let answers = 0

  app.onError((error, c) => {
    if (error instanceof BadRequest) return refuse(c, 400, error.message)
    if (error instanceof Problem) return refuse(c, 400, `ERR ${error.message}`)
    if (error instanceof NoReply)
      return refuse(c, 503, 'ERR Redis does not answer: whether the command was run is not known')
    // An error may quote the URL, and the URL may have the token in it.
    const stack = error.stack?.replace(/(_|%5f)token=[^&\s"'#]*/gi, '_token=[sealed]')
    log.error('A request failed.', { service: 'rest', method: c.req.method, error: error.name, stack })
    return refuse(c, 500, 'ERR Something went wrong here: the log has more')
  })

  app.use(sizeHead)
  app.use(refuseBadHost)
  app.get('/healthz', (c) => c.json({ status: 'alive' }))

  app.use(async (c, next) => {
    c.set('bill', metrics.openBill())
    await next()
    c.header('upstash-sync-token', `rest-${++answers}`)
    c.header(BILLED, String(c.var.bill.total()))
    metrics.request(c.res.status)
  })
  app.use(async (c, next) => {
    const bearer = /^Bearer +(\S+) *$/i.exec(c.req.header('Authorization') ?? '')?.[1]
    const token = bearer ?? c.req.query('_token')
    if (token === undefined || (await auth.scopesOf(token)) === null) {
      return refuse(c, 401, 'WRONGPASS invalid or missing auth token')
    }
    return next()
  })
  app.use(async (c, next) => {
    const allowed = methodsOf(c.req.path)
    if (allowed === null) return refuse(c, 404, 'ERR There is nothing here')
    if (allowed.includes(c.req.method)) return next()
    c.header('Allow', allowed.join(', '))
    return refuse(c, 405, `ERR ${c.req.method} is not possible here: use ${allowed.join(' or ')}`)
  })
  app.use(
    bodyLimit({
      maxSize: MAX_BODY,
      onError: (c) => refuse(c, 413, `ERR max request size exceeded. Limit: ${MAX_BODY} bytes`),
    }),
  )

  app.get('/metrics', (c) => c.text(metrics.text(streams.size), 200, { 'Content-Type': 'text/plain; version=0.0.4' }))

  const runOne = async (c: Context<Env>, command: Command) => {
    const [reply = null] = await executor.run([command], c.var.bill)
    return answer(c, reply)
  }
  app.post('/', async (c) => runOne(c, parseCommand(await c.req.text())))

  app.post('/pipeline', async (c) => answerAll(c, await executor.run(parseCommands(await c.req.text()), c.var.bill)))

  app.post('/multi-exec', async (c) => {
    const replies = await executor.runTransaction(parseCommands(await c.req.text()), c.var.bill)
    return replies instanceof Error ? answer(c, replies) : answerAll(c, replies)
  })

  const subscribe = async (c: Context<Env>, kind: Kind) => {
    const names = pathArguments(new URL(c.req.url)).slice(1).map(String)
    if (names.length === 0) throw new BadRequest(`ERR wrong number of arguments for '${kind}' command`)
    const stream = await streams.open(kind, names, c.req.raw.signal)
    for (const _name of names) c.var.bill.command(kind)
    return c.body(stream, 200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' })
  }
  for (const kind of ['subscribe', 'psubscribe'] as const) {
    app.on(['GET', 'POST'], [`/${kind}`, `/${kind}/*`], (c) => subscribe(c, kind))
  }

  app.all('/*', async (c) => {
    const hasBody = c.req.method === 'POST' || c.req.method === 'PUT'
    const body = hasBody ? Buffer.from(await c.req.arrayBuffer()) : Buffer.alloc(0)
    return runOne(c, commandOfUrl(new URL(c.req.url), body))
  })
  return app
}

function methodsOf(path: string): readonly string[] | null {
  if (path === '/' || path === '/pipeline' || path === '/multi-exec') return ['POST']
  if (/^\/(pipeline|multi-exec|metrics)\//.test(path)) return null
  if (path === '/metrics') return ['GET', 'HEAD']
  if (/^\/p?subscribe(\/|$)/.test(path)) return ['GET', 'POST']
  return ['GET', 'HEAD', 'POST', 'PUT']
}

function answer(c: Context, reply: Reply): Response {
  const status = reply instanceof Error ? 400 : 200
  if (wantsResp2(c)) return resp2(c, toResp2(reply), status)
  return json(c, answerJson(reply, encodingOf(c)), status)
}

function answerAll(c: Context, replies: readonly Reply[]): Response {
  if (wantsResp2(c)) return resp2(c, toResp2(replies), 200)
  const encoding = encodingOf(c)
  return json(c, `[${replies.map((reply) => answerJson(reply, encoding)).join(',')}]`, 200)
}

function refuse(c: Context, status: ContentfulStatusCode, error: string): Response {
  return c.json({ error }, status, status === 401 ? { 'WWW-Authenticate': 'Bearer' } : {})
}

function json(c: Context, body: string, status: ContentfulStatusCode): Response {
  return c.body(body, status, { 'Content-Type': 'application/json' })
}

function resp2(c: Context, body: Buffer, status: ContentfulStatusCode): Response {
  return c.body(new Uint8Array(body), status, { 'Content-Type': 'application/octet-stream' })
}

function encodingOf(c: Context): Encoding {
  return c.req.header('Upstash-Encoding')?.toLowerCase() === 'base64' ? 'base64' : 'text'
}

function wantsResp2(c: Context): boolean {
  return c.req.header('Upstash-Response-Format')?.toLowerCase() === 'resp2'
}
