import { type Contract, redact } from './define.ts'
import { canonicalJson, digestOf } from './json.ts'

/**
 * Whether a payload that is given again is the one that was given before. What is stored is what its schema made of it, and a schema may make something
 * else of it each time (a default that is drawn, a transform): then a digest of what was given is stored beside it. Secrets are left out of both.
 */
export function isGivenAgain(
  contract: Contract,
  given: unknown,
  stored: { payload?: unknown; given?: string },
): boolean {
  const text = canonicalJson(redact(contract, given))
  if (stored.given !== undefined) return stored.given === digestOf(text)
  return canonicalJson(redact(contract, stored.payload)) === text
}

/** The digest of a payload as it was given; undefined where its schema made the same of it. */
export function givenOf(contract: Contract, given: unknown, payload: unknown): string | undefined {
  const text = canonicalJson(redact(contract, given))
  return text === canonicalJson(redact(contract, payload)) ? undefined : digestOf(text)
}
