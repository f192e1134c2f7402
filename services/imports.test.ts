/** Imports run one way, as docs/architecture.md says. */
import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { Glob } from 'bun'

/** Rooms that each room may import from, beside itself. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  'shared/task': [],
  // Settings ask what a Redis URL means, and adapters give a driver its database.
  'shared/runtime': ['shared/task', 'shared/broker'],
  'shared/broker': ['shared/task', 'shared/runtime'],
  'shared/http': ['shared/task', 'shared/runtime'],
  'shared/worker': ['shared/task', 'shared/runtime', 'shared/broker'],
}

/** Those that only tests use. */
const OF_TESTS =
  /\.test\.ts$|^shared\/(test|broker\/suite)\/|^services\/(fuzz|sealing|bytes)\/|^services\/rest\/endpoint\.ts$/

const files = [...new Glob('{shared,services}/**/*.ts').scanSync('.')].filter((file) => !OF_TESTS.test(file))

function importsOf(file: string): string[] {
  return Array.from(readFileSync(file, 'utf8').matchAll(/from '#([a-z]+\/[a-z-]+)/g), ([, room = '']) => room)
}

test.each(Object.entries(MAY_IMPORT))('%s imports only what stands below it', (room, allowed) => {
  const own = files.filter((file) => file.startsWith(`${room}/`))
  expect(own.length).toBeGreaterThan(3)
  const wrong = own.flatMap((file) =>
    importsOf(file).flatMap((other) => (other === room || allowed.includes(other) ? [] : [`${file}: ${other}`])),
  )
  expect(wrong).toEqual([])
})

test('no creator and no manager imports a handler, or anything of the tests', () => {
  const own = files.filter((file) => /^services\/(creator|manager)\//.test(file))
  const wrong = own.flatMap((file) =>
    Array.from(readFileSync(file, 'utf8').matchAll(/from '(#services\/workers[^']*|#shared\/test[^']*)'/g))
      .map(([, from = '']) => from)
      .filter((from) => from !== '#services/workers/contracts.ts')
      .map((from) => `${file}: ${from}`),
  )
  expect(wrong).toEqual([])
})
