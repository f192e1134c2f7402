import * as z from 'zod'
import { defineTask, secret } from '#shared/task/define.ts'

export const chat = defineTask({
  kind: 'chat',
  description: 'Asks a language model one question and gives its answer.',
  input: z.object({
    question: z.string().min(1).max(100_000),
    api_key: secret(z.string().min(1).max(1_000)),
    model: z.string().min(1).max(200).optional(),
  }),
  output: z.string(),
  timeoutMs: 120_000,
  concurrency: 20,
})
