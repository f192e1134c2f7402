import type { Context, MiddlewareHandler } from 'hono'
import type { Scope, Token } from '#shared/runtime/doors.ts'
import { Problem } from './problem.ts'

/** Knows the tokens of a service, as digests only. */
export interface Auth {
  /** The scopes of a token; null when it is unknown. Takes the same time whichever tokens it resembles. */
  scopesOf(token: string): Promise<readonly Scope[] | null>
  /** Who sends the request: null with an unknown token, undefined without any. Asked twice of one request, it looks once. */
  callerOf(c: Context): Promise<Caller | null | undefined>
}

/** The token that a request came with, by its place in the setting. */
export interface Caller {
  readonly index: number
  readonly scopes: readonly Scope[]
}

/** Null when there are no tokens: then every request is let in. */
export async function createAuth(tokens: readonly Token[]): Promise<Auth | null> {
  if (tokens.length === 0) return null
  const digests = await Promise.all(tokens.map(({ token }) => digestIn(token)))
  const known = tokens.map(({ scopes }, index) => ({ index, scopes, digest: digests[index] ?? new Uint8Array() }))
  const seen = new WeakMap<Request, Promise<Caller | null>>()

  async function find(token: string): Promise<Caller | null> {
    const digest = await digestOf(token)
    let found: Caller | null = null
    for (const entry of known) {
      if (equal(entry.digest, digest)) found = entry
    }
    return found
  }

  return {
    async scopesOf(token) {
      return (await find(token))?.scopes ?? null
    },
    async callerOf(c) {
      const token = bearerOf(c)
      if (token === undefined) return undefined
      const { raw } = c.req
      const caller = seen.get(raw) ?? find(token)
      seen.set(raw, caller)
      return caller
    },
  }
}

/** The bearer token that a request came with. */
export function bearerOf(c: Context): string | undefined {
  return /^Bearer +(\S+) *$/i.exec(c.req.header('Authorization') ?? '')?.[1]
}

/** Lets a request through when its bearer token has the scope: else 401, or 403 when the token is good for other things. */
export function requireScope(auth: Auth | null, scope: Scope): MiddlewareHandler {
  return async (c, next) => {
    if (auth === null) return next()
    const caller = await auth.callerOf(c)
    if (caller === undefined)
      throw refusal('unauthorized', 'A token is required: send Authorization: Bearer <token>.', '')
    if (caller === null) throw refusal('unauthorized', 'This token is unknown.', ', error="invalid_token"')
    if (!caller.scopes.includes(scope)) {
      const challenge = `, error="insufficient_scope", scope="${scope}"`
      throw refusal('forbidden', `This token may not do that: it lacks the scope "${scope}".`, challenge)
    }
    return next()
  }
}

function refusal(code: 'unauthorized' | 'forbidden', detail: string, challenge: string): Problem {
  return new Problem(code, detail, { headers: { 'WWW-Authenticate': `Bearer realm="tasker"${challenge}` } })
}

/** The digest of a token as it stands in the settings: in clear, or hashed already. */
function digestIn(setting: string): Uint8Array | Promise<Uint8Array> {
  const hex = /^sha256:([0-9a-f]{64})$/.exec(setting)?.[1]
  return hex === undefined ? digestOf(setting) : Uint8Array.from(hex.match(/../g) ?? [], (byte) => Number(`0x${byte}`))
}

async function digestOf(token: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(token)))
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.length ^ b.length
  for (const [index, byte] of a.entries()) difference |= byte ^ (b[index] ?? 0)
  return difference === 0
}
