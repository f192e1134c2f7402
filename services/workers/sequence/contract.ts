import * as z from 'zod'
import { defineTask } from '#shared/task/define.ts'

export const sequence = defineTask({
  kind: 'sequence',
  description: 'Adds 1 + 2 + … + n without the formula, by n sum tasks.',
  input: z.object({ n: z.int().min(0).max(1_000_000) }),
  output: z.number(),
  concurrency: 50,
})
