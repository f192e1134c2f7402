/** A worker process of `sum`, and of `block`, whose handler never gives the event loop back. */
import * as z from 'zod'
import { runWorker } from '#services/workers/start.ts'
import sum from '#services/workers/sum/worker.ts'
import { defineTask } from '#shared/task/define.ts'
import { implement } from '#shared/worker/implement.ts'

const block = defineTask({ kind: 'block', description: 'Never ends.', input: z.object({}), output: z.null() })

const blocking = implement(block, () => {
  console.log('Blocked.')
  for (;;);
})

await runWorker(() => [sum, blocking])
