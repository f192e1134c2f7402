import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadOrCreateKey, openKeyring } from './keyfile.ts'
import { decodeKey, newKey } from './seal.ts'

let folder = ''
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tasker-key-'))
})
afterEach(() => rm(folder, { recursive: true }))

test('a missing file is made, with its folder, for its owner alone', async () => {
  const path = join(folder, 'deep', 'er', 'x.key')
  const key = await loadOrCreateKey(path)
  expect(decodeKey(key)).toHaveLength(32)
  expect((await stat(path)).mode & 0o777).toBe(0o600)
  expect(await loadOrCreateKey(path)).toBe(key)
})

test('many that start at once agree on one key and leave nothing behind', async () => {
  const path = join(folder, 'x.key')
  const keys = await Promise.all(Array.from({ length: 20 }, () => loadOrCreateKey(path)))
  expect(new Set(keys).size).toBe(1)
  expect(await readdir(folder)).toEqual(['x.key'])
})

test('processes that start at once agree on one key', async () => {
  const path = join(folder, 'x.key')
  const module = join(import.meta.dir, 'keyfile.ts')
  const script = `import { loadOrCreateKey } from '${module}'; console.log(await loadOrCreateKey('${path}'))`
  const run = async () => new Response(Bun.spawn([process.execPath, '-e', script]).stdout).text()
  const keys = await Promise.all([run(), run(), run()])
  expect(decodeKey(keys[0]?.trim() ?? '')).toHaveLength(32)
  expect(new Set(keys).size).toBe(1)
})

test('a keyring opens with several keys of a file, the first of which seals', async () => {
  const path = join(folder, 'x.key')
  const old = newKey()
  const sealed = await (await openKeyring({ type: 'keys', keys: [old] }))?.seal('t', 'sk')
  await writeFile(path, `${newKey()},${old}\n`)
  expect(await (await openKeyring({ type: 'file', path }))?.open('t', sealed)).toBe('sk')
})

test('a rubbish file is refused and kept', async () => {
  const path = join(folder, 'x.key')
  await writeFile(path, 'hunter2')
  await expect(openKeyring({ type: 'file', path })).rejects.toThrow('32 bytes')
  expect(await Bun.file(path).text()).toBe('hunter2')
})

test('a random key is another each time, and none is none', async () => {
  const [a, b] = [await openKeyring({ type: 'random' }), await openKeyring({ type: 'random' })]
  await expect(b?.open('t', await a?.seal('t', 'x'))).rejects.toThrow('lacks')
  expect(await openKeyring({ type: 'none' })).toBeNull()
})
