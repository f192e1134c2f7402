import { join } from 'node:path'
import { Queue, QueueEvents, shutdownManager, Worker } from 'bunqueue/client'
import { type Contestant, createCounter, inBatches, type Open, payload } from './contestant.ts'

type Payload = ReturnType<typeof payload>

/** Its documentation shows 100 as the batch to pull for busy queues. */
const PULL = 100

/**
 * bunqueue, embedded, with its SQLite file on disk. `addBulk` for many. Without `durable` on its jobs, its default: adds go through a buffer in memory and
 * are on disk some ms later, a difference in its favour. Results: in its file, as removeOnComplete is off by default.
 */
export const open: Open = async ({ dir }): Promise<Contestant> => {
  const options = { embedded: true, dataPath: join(dir, 'bunqueue.db') }
  const queue = new Queue<Payload>('sum', options)
  const stored = createCounter()
  let worker: Worker<Payload, number> | undefined
  const start = () => {
    if (worker) return
    worker = new Worker<Payload, number>('sum', async ({ data }) => data.num1 + data.num2, {
      ...options,
      concurrency: PULL,
      batchSize: PULL,
      // Waits for jobs instead of asking every few ms.
      pollTimeout: 5_000,
    })
    // Emitted when the acknowledgement has been written.
    worker.on('completed', () => stored.add(1))
    worker.on('error', (error) => console.error(error))
  }
  let events: QueueEvents | undefined

  return {
    add: (n) =>
      inBatches(n, (size, from) =>
        queue.addBulk(Array.from({ length: size }, (_, i) => ({ name: 'sum', data: payload(from + i) }))),
      ),
    async work(n) {
      const done = stored.more(n)
      start()
      await done
    },
    async one() {
      start()
      events ??= new QueueEvents('sum')
      const job = await queue.add('sum', payload(1))
      await job.waitUntilFinished(events)
    },
    async stored() {
      const counts = await queue.getJobCountsAsync()
      return counts.completed
    },
    async close() {
      await worker?.close(true)
      queue.close()
      shutdownManager()
    },
  }
}
