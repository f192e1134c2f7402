import { Queue, QueueEvents, Worker } from 'bullmq'
import { type Contestant, createCounter, inBatches, type Open, payload } from './contestant.ts'

type Payload = ReturnType<typeof payload>

/** The documentation's example has 50. From there to 300 the rate hardly differs with such short jobs. */
const CONCURRENCY = 100

/**
 * BullMQ on ioredis, its default client. `addBulk` for many. Results: `returnvalue` in each job's hash, kept, as removeOnComplete is off by default.
 * Locks and the check for stalled jobs stay on: they are what makes it safe.
 */
export const open: Open = async ({ redisUrl }): Promise<Contestant> => {
  const connection = { url: redisUrl }
  const queue = new Queue<Payload, number>('sum', { connection })
  await queue.waitUntilReady()
  const stored = createCounter()
  let worker: Worker<Payload, number> | undefined
  const start = () => {
    if (worker) return
    worker = new Worker<Payload, number>('sum', async ({ data }) => data.num1 + data.num2, {
      connection,
      concurrency: CONCURRENCY,
    })
    // Emitted when the move to completed has been acknowledged.
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
      if (!events) {
        events = new QueueEvents('sum', { connection })
        await events.waitUntilReady()
      }
      const job = await queue.add('sum', payload(1))
      await job.waitUntilFinished(events)
    },
    stored: () => queue.getCompletedCount(),
    async close() {
      await worker?.close(true)
      await events?.close()
      await queue.close()
    },
  }
}
