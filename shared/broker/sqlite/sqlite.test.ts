import { afterAll } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { testBroker } from '../suite/suite.ts'
import { createSqliteBroker } from './sqlite.ts'

const folder = mkdtempSync(join(tmpdir(), 'tasker-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

testBroker({
  name: 'SQLite in memory',
  open: async ({ now }) => createSqliteBroker({ path: ':memory:', now }),
  lacks: {
    secondConnection: 'a store in memory has one connection',
    remoteEvents: 'a store in memory has one connection',
  },
})

testBroker({
  name: 'SQLite in a file',
  open: async ({ namespace, now }) => createSqliteBroker({ path: join(folder, `${namespace}.db`), now }),
  destroy: async (namespace) => {
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(folder, `${namespace}.db${suffix}`), { force: true })
  },
  lacks: { remoteEvents: 'events stay in the process; those who watch also poll' },
})
