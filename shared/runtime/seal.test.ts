import { expect, test } from 'bun:test'
import { chat } from '#services/workers/chat/contract.ts'
import { sum } from '#services/workers/sum/contract.ts'
import { createKeyring, newKey, openPayload, sealPayload } from './seal.ts'

const id = '0190f5a0-0000-7000-8000-000000000001'

test('a value comes back as it was sealed', async () => {
  const keyring = await createKeyring([newKey()])
  for (const value of ['sk-123', 'ü✓', 42, { deep: ['x'] }, 'sealed:like']) {
    const sealed = await keyring.seal(id, value)
    expect(sealed).toStartWith('sealed:')
    expect(await keyring.open(id, sealed)).toEqual(value)
  }
})

test('a sealed text shows nothing of the value and is never the same twice', async () => {
  const keyring = await createKeyring([newKey()])
  const [a, b] = [await keyring.seal(id, 'sk-123'), await keyring.seal(id, 'sk-123')]
  expect(a).not.toContain('sk-123')
  expect(a).not.toBe(b)
})

test('the header is a direct A256GCM JWE that names key and task', async () => {
  const sealed = await (await createKeyring([newKey()])).seal(id, 'x')
  const header = JSON.parse(
    atob(sealed.slice('sealed:'.length).replace(/\..*/, '').replaceAll('-', '+').replaceAll('_', '/')),
  )
  expect(header).toEqual({ alg: 'dir', enc: 'A256GCM', kid: expect.stringMatching(/^[\w-]{8}$/), task_id: id })
})

test('moved to another task it does not open, even with its header rewritten', async () => {
  const keyring = await createKeyring([newKey()])
  const sealed = await keyring.seal('task-a', 'sk-123')
  await expect(keyring.open('task-b', sealed)).rejects.toThrow(/task-b.*another task/)
  const moved = await keyring.seal('task-b', 'other')
  const forged = [moved.split('.')[0], ...sealed.split('.').slice(1)].join('.')
  await expect(keyring.open('task-b', forged)).rejects.toMatchObject({ name: 'PermanentError', code: 'sealed' })
})

test('a changed text is refused', async () => {
  const keyring = await createKeyring([newKey()])
  const sealed = await keyring.seal(id, 'sk-123')
  const parts = sealed.split('.')
  parts[3] = parts[3]?.replace(/^./, (char) => (char === 'A' ? 'B' : 'A')) ?? ''
  for (const text of [parts.join('.'), 'sealed:', 'sealed:rubbish', 'sealed:a.b.c.d.e']) {
    await expect(keyring.open(id, text)).rejects.toMatchObject({ code: 'sealed' })
  }
})

test('keys rotate: the first seals, all open', async () => {
  const [old, fresh] = [newKey(), newKey()]
  const before = await createKeyring([old])
  const during = await createKeyring([fresh, old])
  const after = await createKeyring([fresh])
  const sealed = await before.seal(id, 'sk-123')
  expect(await during.open(id, sealed)).toBe('sk-123')
  expect(await after.open(id, await during.seal(id, 'sk-123'))).toBe('sk-123')
  const refusal = await after.open(id, sealed).catch((error: Error) => error)
  expect(refusal).toMatchObject({ name: 'KeyMissing', message: expect.stringContaining('TASKER_SECRET') })
  expect(String(refusal)).not.toContain(old)
})

test('what a foreign producer sent in clear comes back as it is', async () => {
  const keyring = await createKeyring([newKey()])
  expect(await keyring.open(id, 'sk-clear')).toBe('sk-clear')
  expect(await keyring.open(id, 7)).toBe(7)
})

test('only the secret fields of a payload are sealed', async () => {
  const keyring = await createKeyring([newKey()])
  const payload = { question: 'Why?', api_key: 'sk-123' }
  const sealed = await sealPayload(keyring, chat, id, payload)
  expect(sealed).toEqual({ question: 'Why?', api_key: expect.stringMatching(/^sealed:/) })
  expect(await openPayload(keyring, chat, id, sealed)).toEqual(payload)
  expect(await sealPayload(keyring, sum, id, { num1: 1, num2: 2 })).toEqual({ num1: 1, num2: 2 })
})

test('a wrong key is named as such and not shown', async () => {
  await expect(createKeyring([])).rejects.toThrow('at least one key')
  const wrong = 'c2hvcnQ='
  const error = await createKeyring([newKey(), wrong]).catch((error: Error) => error)
  expect(String(error)).toContain('32 bytes')
  expect(String(error)).not.toContain(wrong)
})
