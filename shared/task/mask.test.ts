import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { maskSecrets } from './mask.ts'

const SECRET = 'sk-"top/secret"+key=42&more?'

test.each([
  ['as it is', SECRET],
  ['as JSON', JSON.stringify({ SECRET })],
  ['as JSON that escapes slashes', JSON.stringify(SECRET).replaceAll('/', '\\/')],
  ['in a query', new URLSearchParams({ SECRET }).toString()],
  ['in a path', `/keys/${encodeURIComponent(SECRET)}`],
  ['as hex', Buffer.from(SECRET).toString('hex')],
])('a secret %s is masked', (_, quoted) => {
  const masked = maskSecrets(`before ${quoted} after`, [SECRET])
  expect(masked).toContain('[sealed]')
  expect(masked).not.toMatch(/top|secret.*key|746f70/)
  expect(masked).toStartWith('before ')
  expect(masked).toEndWith(' after')
})

test('a secret in base64 is masked wherever it stands in it', () => {
  for (let before = 0; before < 6; before++) {
    for (let after = 0; after < 3; after++) {
      const text = 'x'.repeat(before) + SECRET + 'y'.repeat(after)
      for (const encoding of ['base64', 'base64url'] as const) {
        const masked = maskSecrets(Buffer.from(text).toString(encoding), [SECRET])
        expect(masked).toContain('[sealed]')
        expect(Buffer.from(masked.replace('[sealed]', ''), encoding).toString()).not.toContain('key')
      }
    }
  }
})

test('a secret that is part of another hides no rest of it', () => {
  expect(maskSecrets('key-longer key', ['key', 'key-longer'])).toBe('[sealed] [sealed]')
})

test('a text without the secret stays as it is, and a short one hides no more than itself', () => {
  expect(maskSecrets('The model is overloaded.', [SECRET])).toBe('The model is overloaded.')
  expect(maskSecrets('6b MWs= k', ['k'])).toBe('6b MWs= [sealed]')
})

test('whatever the secret is, it is gone, and nothing throws', () => {
  const secret = fc.string({ unit: 'binary', minLength: 6 }).filter((text) => !'[sealed]'.includes(text))
  fc.assert(
    fc.property(secret, (text) => {
      expect(maskSecrets(`a ${text} z ${JSON.stringify(text)}`, [text])).not.toContain(text)
    }),
  )
  expect(maskSecrets('\ud800x \ud800', ['\ud800'])).toBe('[sealed]x [sealed]')
})
