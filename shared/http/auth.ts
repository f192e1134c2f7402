import type { MiddlewareHandler } from 'hono'
import type { Scope, Token } from '#shared/runtime/config.ts'
import { Problem } from './problem.ts'

/** Knows the tokens of a service, as digests only. */
export interface Auth {
  /** The scopes of a token; null when it is unknown. Takes the same time whichever tokens it resembles. */
  scopesOf(token: string): Promise<readonly Scope[] | null>
}

/** Null when there are no tokens: then every request is let in. */
export async function createAuth(tokens: readonly Token[]): Promise<Auth | null> {
  if (tokens.length === 0) return null
  const known = await Promise.all(tokens.map(async ({ token, scopes }) => ({ digest: await digestOf(token), scopes })))
  return {
    async scopesOf(token) {
      const digest = await digestOf(token)
      let found: readonly Scope[] | null = null
      for (const entry of known) {
        if (equal(entry.digest, digest)) found = entry.scopes
      }
      return found
    },
  }
}

/** Lets a request through when its bearer token has the scope: else 401, or 403 when the token is good for other things. */
export function requireScope(auth: Auth | null, scope: Scope): MiddlewareHandler {
  return async (c, next) => {
    if (auth === null) return next()
    const token = /^Bearer +(\S+) *$/i.exec(c.req.header('Authorization') ?? '')?.[1]
    if (token === undefined)
      throw refusal('unauthorized', 'A token is required: send Authorization: Bearer <token>.', '')
    const scopes = await auth.scopesOf(token)
    if (scopes === null) throw refusal('unauthorized', 'This token is unknown.', ', error="invalid_token"')
    if (!scopes.includes(scope)) {
      const challenge = `, error="insufficient_scope", scope="${scope}"`
      throw refusal('forbidden', `This token may not do that: it lacks the scope "${scope}".`, challenge)
    }
    return next()
  }
}

function refusal(code: 'unauthorized' | 'forbidden', detail: string, challenge: string): Problem {
  return new Problem(code, detail, { headers: { 'WWW-Authenticate': `Bearer realm="tasker"${challenge}` } })
}

async function digestOf(token: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(token)))
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.length ^ b.length
  for (const [index, byte] of a.entries()) difference |= byte ^ (b[index] ?? 0)
  return difference === 0
}
