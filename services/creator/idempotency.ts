import type { Stored } from '#shared/broker/broker.ts'
import { Problem } from '#shared/http/problem.ts'
import { type Contract, redact } from '#shared/task/define.ts'
import { givenOf, isGivenAgain } from '#shared/task/given.ts'
import { canonicalJson, digestOf } from '#shared/task/json.ts'
import { readEnvelope, readRecord } from '#shared/task/record.ts'
import type { Creation, TaskOptions } from './options.ts'

/**
 * The id of the task that an idempotency key stands for: a UUID of version 8 (RFC 9562), made of the SHA-256 of kind and key. The
 * same key gives the same id in every process, so that "the same id twice is one task" serves it without a table of keys.
 *
 * @throws Problem with code `malformed` when the key is not 1 to 255 visible characters.
 */
export async function idOfKey(kind: string, key: string): Promise<string> {
  if (!/^[\x21-\x7e]{1,255}$/.test(key)) {
    throw new Problem('malformed', 'An Idempotency-Key has 1 to 255 visible ASCII characters.')
  }
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(`${kind}\n${key}`))
  const bytes = new Uint8Array(digest, 0, 16)
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x80
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}

/**
 * What is stored of a creation so that it is known when it comes again: nothing where its payload tells all, else a
 * digest of the payload as it was given and of its options. Secrets are left out of it.
 */
export function markOf(contract: Contract, { given, payload, options }: Creation): string | undefined {
  const chosen = chosenOf(options)
  return chosen === null
    ? givenOf(contract, given, payload)
    : digestOf(canonicalJson([redact(contract, given), chosen]))
}

/**
 * True when the stored task was created with this payload and these options, secrets aside: they are not kept. A record
 * that a foreign worker wrote has no payload; then the key alone decides.
 */
export function isSame(contract: Contract, stored: Stored, creation: Creation): boolean {
  const before = stored.live ? readEnvelope(stored.live.envelope) : readRecord(stored.record)
  if (before?.payload === undefined) return true
  if (chosenOf(creation.options) !== null) return before.given === markOf(contract, creation)
  return isGivenAgain(contract, creation.given, before)
}

/** The options that differ from what holds without them; null when none does. */
function chosenOf(options: TaskOptions): TaskOptions | null {
  const { priority, delay_ms, ...others } = options
  const chosen = { ...others, ...(priority !== 'normal' && { priority }), ...(delay_ms && { delay_ms }) }
  return Object.values(chosen).some((value) => value !== undefined) ? chosen : null
}
