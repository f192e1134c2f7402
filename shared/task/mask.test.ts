import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { createMask, maskSecrets } from './mask.ts'

const SECRET = 'sk-"top/secret"+key=42&more?'

test.each([
  ['as it is', SECRET],
  ['as JSON', JSON.stringify({ SECRET })],
  ['as JSON that escapes slashes', JSON.stringify(SECRET).replaceAll('/', '\\/')],
  ['in a query', new URLSearchParams({ SECRET }).toString()],
  ['in a path', `/keys/${encodeURIComponent(SECRET)}`],
  ['in JSON that is a text in JSON', JSON.stringify({ json: JSON.stringify({ SECRET }) })],
  [
    'in a query with small letters',
    new URLSearchParams({ SECRET }).toString().replace(/%../g, (code) => code.toLowerCase()),
  ],
  ['in HTML', SECRET.replaceAll('&', '&amp;').replaceAll('"', '&quot;')],
  ['as hex of JSON', Buffer.from(JSON.stringify({ SECRET })).toString('hex')],
  ['as JSON in a URL', encodeURIComponent(JSON.stringify({ SECRET }))],
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

test('a secret in letters that JSON may escape is masked', () => {
  const json = '{"key":"sch\\u00fcssel-\\u2713"}'
  expect(maskSecrets(json, [JSON.parse(json).key])).toBe('{"key":"[sealed]"}')
})

test('half of a secret at the end of a text is masked, in each form, and less of it is not', () => {
  for (const form of [SECRET, Buffer.from(SECRET).toString('hex'), JSON.stringify(SECRET).slice(1, -1)]) {
    const half = Math.ceil(form.length / 2)
    for (const [length, masked] of [
      [half, 'cut: [sealed]'],
      [form.length - 1, 'cut: [sealed]'],
      [half - 3, `cut: ${form.slice(0, half - 3)}`],
    ] as const) {
      expect(maskSecrets(`cut: ${form.slice(0, length)}`, [SECRET])).toBe(masked)
      expect(createMask([SECRET]).value([`cut: ${form.slice(0, length)}`])).toEqual([masked])
    }
  }
})

test('a secret of many characters is masked like any other', () => {
  const long = 'a-key-'.repeat(100_000)
  expect(maskSecrets(`${long} and ${btoa(long)}`, [long])).toBe('[sealed] and [sealed]')
})

test('whatever is cut into chunks is masked as the whole of it is', () => {
  const text = fc.array(fc.constantFrom(SECRET, SECRET.slice(0, 9), 'sk', 's', ' and ', '[sealed]'), { maxLength: 8 })
  fc.assert(
    fc.property(text, fc.array(fc.nat(12), { minLength: 1 }), (parts, lengths) => {
      const whole = parts.join('')
      const mask = createMask([SECRET])
      const chunks = mask.chunks()
      let told = ''
      for (let at = 0, i = 0; at < whole.length; i++) {
        const length = 1 + (lengths[i % lengths.length] ?? 0)
        told += chunks.push(whole.slice(at, at + length))
        at += length
      }
      expect(told + chunks.flush()).toBe(mask.text(whole))
    }),
  )
})

test('a value that quotes nothing is the same value', () => {
  const value = { a: [1, 'text', null, { b: true }] }
  expect(createMask([SECRET]).value(value)).toBe(value)
  expect(createMask([SECRET]).value({ n: 123_456, key: `${SECRET}!` })).toEqual({ n: 123_456, key: '[sealed]!' })
  expect(createMask(['123456']).value({ n: 123_456, m: 1_234_567 })).toEqual({ n: '[sealed]', m: 1_234_567 })
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
