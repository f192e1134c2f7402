import type { Context } from 'hono'
import { InvalidInput } from '#shared/task/errors.ts'

/**
 * The parameters of the query that a route knows.
 *
 * @throws InvalidInput naming those that it does not know, and those that are there twice: a misspelt filter must not
 * be passed over in silence.
 */
export function readQuery(c: Context, known: readonly string[]): Record<string, string> {
  const all = c.req.queries()
  const issues = Object.keys(all)
    .filter((name) => !known.includes(name) || all[name]?.length !== 1)
    .map((name) => ({ path: name, message: known.includes(name) ? 'Given more than once' : unknown(known) }))
  if (issues.length > 0) throw new InvalidInput('The query does not fit.', issues)
  return Object.fromEntries(Object.entries(all).map(([name, values]) => [name, values[0] ?? '']))
}

function unknown(known: readonly string[]): string {
  return known.length === 0
    ? 'Unknown parameter: this route knows none'
    : `Unknown parameter: this route knows ${known.join(', ')}`
}
