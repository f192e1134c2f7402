import * as z from 'zod'
import { defineTask, secret } from '#shared/task/define.ts'

export const conversation = defineTask({
  kind: 'conversation',
  description: 'Lets a language model talk with itself about a topic, by n chat tasks, one after the other.',
  input: z.object({
    topic: z.string().min(1).max(10_000),
    n: z.int().min(1).max(100),
    api_key: secret(z.string().min(1).max(1_000)),
    model: z.string().min(1).max(200).optional(),
  }),
  output: z.string(),
  concurrency: 50,
})
