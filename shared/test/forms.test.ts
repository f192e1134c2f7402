import { expect, test } from 'bun:test'
import { findForms, formsOf } from './forms.ts'

const SECRET = 'sk-"top/secret"+key=42&more?'

test.each([
  ['clear', SECRET],
  ['clear', JSON.stringify({ json: JSON.stringify({ SECRET }) })],
  ['clear', JSON.stringify(SECRET).replaceAll('/', '\\/')],
  ['hex', Buffer.from(SECRET).toString('hex')],
  ['hex', Buffer.from(SECRET).toString('hex').toUpperCase()],
  ['URL', encodeURIComponent(SECRET)],
  ['URL', encodeURIComponent(SECRET).toLowerCase()],
  ['URL', new URLSearchParams({ SECRET }).toString()],
])('a secret in the form of %s is found: %s', (form, written) => {
  expect(findForms({ here: `before ${written} after` }, formsOf(SECRET))).toEqual({
    here: expect.arrayContaining([form]),
  })
})

test.each(['base64', 'base64url'] as const)('a secret in %s is found wherever it stands in it', (encoding) => {
  for (let before = 0; before < 6; before++) {
    for (let after = 0; after < 3; after++) {
      const packed = Buffer.from('ÿ'.repeat(before) + SECRET + 'ÿ'.repeat(after)).toString(encoding)
      expect(findForms({ here: packed }, formsOf(SECRET))['here']).toContain(encoding)
    }
  }
})

test('it is found among bytes that are no text, and nowhere else', () => {
  const bytes = Buffer.concat([Buffer.from([0xff, 0x00, 0xc3]), Buffer.from(SECRET), Buffer.from([0xfe])])
  expect(findForms({ bytes, text: 'sk-"no/secret"+key=43' }, formsOf(SECRET))).toEqual({ bytes: ['clear'] })
})

test('a secret that is too short to be looked for is refused', () => {
  expect(() => formsOf('sk-"42"')).toThrow('8 characters')
})
