import type { Context } from 'hono'
import * as z from 'zod'
import type { ListQuery } from '#shared/broker/list.ts'
import { readQuery } from '#shared/http/query.ts'
import { issuesOf } from '#shared/task/define.ts'
import { InvalidInput } from '#shared/task/errors.ts'
import { FINAL_STATES, LIVE_STATES } from '#shared/task/task.ts'

const digits = (least: number, most: number) =>
  z
    .string()
    .regex(/^\d+$/, `Expected a whole number from ${least} to ${most}`)
    .transform(Number)
    .pipe(z.int().min(least).max(most))

const listSchema = (kinds: readonly string[]) =>
  z.object({
    kind: z.enum(kinds).optional(),
    status: z.enum([...LIVE_STATES, ...FINAL_STATES]).optional(),
    parent: z.string().min(1).optional(),
    limit: digits(1, 200).default(50),
    cursor: z.string().min(1).nullable().default(null),
  })

const waitSchema = z.object({ wait: digits(0, 60).default(0) })

/**
 * The filters of `GET /tasks`.
 *
 * @throws InvalidInput naming every parameter that is wrong or unknown.
 */
export function readListQuery(c: Context, kinds: readonly string[]): ListQuery & { parent?: string | undefined } {
  const schema = listSchema(kinds)
  return parse(schema, readQuery(c, Object.keys(schema.shape)))
}

/**
 * Milliseconds that `GET /task/{id}` may wait; 0 when it was not asked to.
 *
 * @throws InvalidInput when it is not a whole number of seconds up to 60, or something else is asked.
 */
export function readWaitMs(c: Context): number {
  return parse(waitSchema, readQuery(c, Object.keys(waitSchema.shape))).wait * 1000
}

function parse<T>(schema: z.ZodType<T>, query: Record<string, string>): T {
  const parsed = schema.safeParse(query)
  if (parsed.success) return parsed.data
  const issues = issuesOf(parsed.error, 'query').map(({ path, message }) => ({
    path: path.replace(/^query\./, ''),
    message,
  }))
  throw new InvalidInput('The query does not fit.', issues)
}
