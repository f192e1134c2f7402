import { expect, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'

const root = new URL('../../../', import.meta.url).pathname
const page = readFileSync(`${root}docs/guarantees.md`, 'utf8')
const [, promised = ''] = /^## Promised\n(.*?)^## /ms.exec(page) ?? []
const rows = promised
  .split('\n')
  .filter((line) => line.startsWith('| ') && !line.startsWith('| promise '))
  .map((line) => line.split(' | '))

/** The tests that a row names, as `file`: "name". */
function testsOf(cell: string): { file: string; name: string }[] {
  return Array.from(cell.matchAll(/`([^`]+\.ts)`: "([^"]+)"/g), ([, file = '', name = '']) => ({ file, name }))
}

/** Names stand alone in their quotes, at the beginning of a call or on a line of their own. */
function hasTest(file: string, name: string): boolean {
  if (!existsSync(root + file)) return false
  const source = readFileSync(root + file, 'utf8')
  return source.includes(`('${name}',`) || source.split('\n').some((line) => line.trim() === `'${name}',`)
}

test('every promise in docs/guarantees.md names a test, and each of them is there', () => {
  expect(rows.length).toBeGreaterThan(20)
  for (const [promise = '', proof = ''] of rows) {
    expect({ promise, tests: testsOf(proof).length }).not.toEqual({ promise, tests: 0 })
    for (const { file, name } of testsOf(proof))
      expect({ file, name, found: hasTest(file, name) }).toMatchObject({ found: true })
  }
})

test('a name that is no test is not found', () => {
  expect(hasTest('shared/test/chaos/guarantees.test.ts', 'a name that is no test')).toBe(false)
  expect(hasTest('shared/test/chaos/nowhere.test.ts', 'a name that is no test is not found')).toBe(false)
})
