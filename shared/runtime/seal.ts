import { base64url, CompactEncrypt, compactDecrypt, decodeProtectedHeader } from 'jose'
import { type Contract, mapSecrets, SEALED_PREFIX } from '#shared/task/define.ts'
import { KeyMissing, PermanentError } from '#shared/task/errors.ts'

/**
 * Seals the secret fields of tasks, so that the store never holds them in clear. A sealed text is bound to the id of its task: moved
 * into another task it does not open.
 */
export interface Keyring {
  /** The value's JSON, encrypted with the first key. */
  seal(taskId: string, value: unknown): Promise<string>
  /**
   * The value again. What does not begin with `sealed:` comes back as it is: foreign producers may send it in clear.
   *
   * @throws KeyMissing when it was sealed with a key that this ring lacks. PermanentError with code `sealed` when the text was changed, or moved from another task.
   */
  open(taskId: string, sealed: unknown): Promise<unknown>
}

interface Key {
  id: string
  bytes: Uint8Array
}

/** The id of a key. */
const KEY_ID = /^[\w-]{8}$/

/**
 * A keyring of 32-byte keys in base64. The first seals, all open, so that keys can be rotated, in this order: add the new one as the last everywhere, then make it
 * the first everywhere, and drop the old one when the tasks sealed with it have ended. In any other order tasks wait for the process that has their key.
 *
 * @throws TypeError when there is no key, or one is not 32 bytes. The message does not show it.
 */
export async function createKeyring(secrets: readonly string[]): Promise<Keyring> {
  const keys = await Promise.all(secrets.map(readKey))
  const [first] = keys
  if (first === undefined) throw new TypeError('A keyring needs at least one key.')
  const byId = new Map(keys.map(({ id, bytes }) => [id, bytes]))

  return {
    async seal(taskId, value) {
      const jwe = await new CompactEncrypt(new TextEncoder().encode(JSON.stringify(value)))
        .setProtectedHeader({ alg: 'dir', enc: 'A256GCM', kid: first.id, task_id: taskId })
        .encrypt(first.bytes)
      return SEALED_PREFIX + jwe
    },

    async open(taskId, sealed) {
      if (typeof sealed !== 'string' || !sealed.startsWith(SEALED_PREFIX)) return sealed
      const jwe = sealed.slice(SEALED_PREFIX.length)
      const header = headerOf(jwe)
      if (header === null) throw refusal(taskId, 'is damaged')
      if (header['task_id'] !== taskId) throw refusal(taskId, 'was sealed for another task')
      const kid = header['kid']
      // One of another form is no key's of ours: no process will ever have it.
      if (typeof kid !== 'string' || !KEY_ID.test(kid)) throw refusal(taskId, 'names no key')
      const key = byId.get(kid)
      if (key === undefined) throw new KeyMissing(`key ${kid}, which sealed a secret field of task ${taskId}`)
      try {
        const { plaintext } = await compactDecrypt(jwe, key, {
          keyManagementAlgorithms: ['dir'],
          contentEncryptionAlgorithms: ['A256GCM'],
        })
        return JSON.parse(new TextDecoder().decode(plaintext))
      } catch {
        // The cause is left out: it may quote what was decrypted.
        throw refusal(taskId, 'is damaged')
      }
    },
  }
}

/** The payload with each secret field sealed for this task. The type is the caller's: a sealed payload no longer fits its schema. */
export function sealPayload(keyring: Keyring, contract: Contract, taskId: string, payload: unknown): Promise<unknown> {
  return mapSecrets(contract, payload, (value) => keyring.seal(taskId, value))
}

/**
 * The payload with each secret field opened.
 *
 * @throws KeyMissing and PermanentError as {@link Keyring.open} does.
 */
export function openPayload(keyring: Keyring, contract: Contract, taskId: string, payload: unknown): Promise<unknown> {
  return mapSecrets(contract, payload, (value) => keyring.open(taskId, value))
}

/** The 32 bytes of a key in base64; null when it is anything else. */
export function decodeKey(secret: string): Uint8Array<ArrayBuffer> | null {
  if (!/^[A-Za-z0-9+/]{43}=?$/.test(secret)) return null
  return Uint8Array.from(atob(secret.padEnd(44, '=')), (char) => char.charCodeAt(0))
}

/** A new random key in base64. */
export function newKey(): string {
  return btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32))))
}

async function readKey(secret: string): Promise<Key> {
  const bytes = decodeKey(secret)
  if (bytes === null) throw new TypeError('A key is not 32 bytes in base64. Make one with: openssl rand -base64 32')
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
  return { id: base64url.encode(digest).slice(0, 8), bytes }
}

function headerOf(jwe: string): Record<string, unknown> | null {
  try {
    return decodeProtectedHeader(jwe)
  } catch {
    return null
  }
}

function refusal(taskId: string, why: string): PermanentError {
  return new PermanentError(`A secret field of task ${taskId} cannot be opened: it ${why}.`, { code: 'sealed' })
}
