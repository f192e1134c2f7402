import * as z from 'zod'
import { defineTask } from '#shared/task/define.ts'

export const sum = defineTask({
  kind: 'sum',
  description: 'Adds two numbers.',
  input: z.object({ num1: z.number(), num2: z.number() }),
  output: z.number(),
  concurrency: 300,
})
