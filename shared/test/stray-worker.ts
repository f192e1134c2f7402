/** A worker process whose handlers leave errors to nobody, beside one that ends when these were thrown. */
import * as z from 'zod'
import { runWorker } from '#services/workers/start.ts'
import { defineTask } from '#shared/task/define.ts'
import { implement } from '#shared/worker/implement.ts'

const input = z.object({ word: z.string() })
const stray = defineTask({ kind: 'stray', description: 'Leaves two errors.', input, output: z.null() })
const beside = defineTask({ kind: 'beside', description: 'Ends.', input: z.object({}), output: z.null() })
const listens = defineTask({ kind: 'listens', description: 'Throws when it stops.', input, output: z.null() })
const thrown = Promise.withResolvers<void>()

await runWorker(() => [
  implement(stray, ({ word }) => {
    void Promise.reject(new TypeError(`left ${word}\n    at ${word} (/${word}:1:1)`))
    setTimeout(() => {
      setTimeout(thrown.resolve)
      throw new RangeError(`late ${word}`)
    }, 20)
    return null
  }),
  implement(beside, async () => {
    await thrown.promise
    return null
  }),
  implement(listens, async ({ word }, { signal }) => {
    signal.addEventListener('abort', () => {
      throw new Error(`aborted ${word}`)
    })
    console.log('{"message":"Listens."}')
    return new Promise(() => undefined)
  }),
])
