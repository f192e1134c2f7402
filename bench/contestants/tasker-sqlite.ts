import { join } from 'node:path'
import { createSqliteBroker } from '../../shared/broker/sqlite/sqlite.ts'
import type { Open } from './contestant.ts'
import { createTasker } from './tasker.ts'

/** Tasker on a SQLite file on disk, as it opens it by default (WAL). Results: final records in the same file. */
export const open: Open = async ({ dir }) => createTasker(createSqliteBroker({ path: join(dir, 'tasker.db') }))
