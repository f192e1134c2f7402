import { link, mkdir, open, readFile, unlink } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { ConfigError, type SecretSource } from './config.ts'
import { createKeyring, decodeKey, type Keyring, newKey } from './seal.ts'

/**
 * Reads the keys of a file (base64, comma-separated), and makes it with one new key and mode 0600 when it is missing, its folder too. Processes that
 * start at once on the same file all come back with the same key.
 *
 * @throws the error of the file system, when the file can be neither read nor made.
 */
export async function loadOrCreateKey(path: string): Promise<string> {
  const known = await readIfThere(path)
  if (known !== null) return known
  await mkdir(dirname(path), { recursive: true })
  // Written aside and linked into place: nobody ever reads half a key, and the first link wins.
  const draft = `${path}.${crypto.randomUUID()}`
  const file = await open(draft, 'wx', 0o600)
  try {
    await file.writeFile(`${newKey()}\n`)
    await file.sync()
    await link(draft, path).catch(unlessThere)
  } finally {
    await file.close()
    await unlink(draft)
  }
  return (await readFile(path, 'utf8')).trim()
}

/**
 * The keyring that the configuration names; null when there is none, and kinds with secrets cannot be created or run. A random key is another at
 * each call: parts of one process that share tasks must share the keyring.
 *
 * @throws ConfigError when the file can be neither read nor made, or holds something else than keys.
 */
export async function openKeyring(source: SecretSource): Promise<Keyring | null> {
  switch (source.type) {
    case 'keys':
      return createKeyring(source.keys)
    case 'file':
      return fromFile(source.path)
    case 'random':
      return createKeyring([newKey()])
    case 'none':
      return null
  }
}

async function fromFile(path: string): Promise<Keyring> {
  const text = await loadOrCreateKey(path).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error)
    throw new ConfigError([
      `The key file ${resolve(path)} can be neither read nor made (${reason}). It lies beside TASKER_DB, or where TASKER_SECRET_FILE says: this user must be able to write it and its folder.`,
    ])
  })
  const keys = text.split(',').map((key) => key.trim())
  if (keys.some((key) => decodeKey(key) === null)) {
    throw new ConfigError([`The key file ${path} must hold keys of 32 bytes in base64, comma-separated.`])
  }
  return createKeyring(keys)
}

async function readIfThere(path: string): Promise<string | null> {
  try {
    return (await readFile(path, 'utf8')).trim()
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return null
    throw error
  }
}

function unlessThere(error: unknown): void {
  if (codeOf(error) !== 'EEXIST') throw error
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error ? String(error.code) : undefined
}
