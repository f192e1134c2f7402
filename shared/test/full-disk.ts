/**
 * A process that may let no file grow over a limit, which is what a full disk looks like to SQLite. It fills the journal of the file that it is given, and prints
 * "Full." when it has refused tasks and holds a result; then, when there is room again, what became of them.
 */
import { Database } from 'bun:sqlite'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { holdResult } from './held-result.ts'

const [, , path = ''] = process.argv
const broker = createSqliteBroker({ path })
const held = await holdResult(broker)

const filler = new Database(path)
filler.exec('CREATE TABLE filler (x); INSERT INTO filler VALUES (0)')
// Each is one page of the journal: when there is no room for it, there is none for anything.
const fill = filler.prepare('UPDATE filler SET x = x + 1')
const isFull = () => {
  try {
    fill.run()
    return false
  } catch {
    return true
  }
}
while (!isFull());

const refused = await held.postAll()
await held.finish()
console.log('Full.')
const { record, ran } = await held.stored()
const stats = await broker.stats(['sum', 'sequence'])
const { status } = await held.post('/sum', { num1: 5, num2: 6 })
console.log(JSON.stringify({ refused, record, ran, stats, status }))
process.exit(0)
