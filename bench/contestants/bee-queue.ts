import BeeQueue from 'bee-queue'
import { type Contestant, createCounter, inBatches, type Open, payload } from './contestant.ts'

type Payload = ReturnType<typeof payload>

const CONCURRENCY = 100

/**
 * bee-queue on its own client. `saveAll` for many; without events and without jobs kept in memory, as its documentation advises for speed, unless
 * single results are awaited. Results: it stores none. With `removeOnSuccess` off the job stays, with payload and status, and the
 * value goes into the event alone: a difference in its favour.
 */
export const open: Open = async ({ redisUrl }, purpose): Promise<Contestant> => {
  const events = purpose === 'results'
  const queue = new BeeQueue<Payload>('sum', {
    // Types know only the options of the client, the client takes a URL.
    redis: { url: redisUrl },
    storeJobs: events,
    getEvents: events,
    sendEvents: events,
    removeOnSuccess: false,
    activateDelayedJobs: false,
  })
  await queue.ready()
  const stored = createCounter()
  let working = false
  const start = () => {
    if (working) return
    working = true
    // Emitted when the job's end has been acknowledged.
    queue.on('succeeded', () => stored.add(1))
    queue.process(CONCURRENCY, async ({ data }: BeeQueue.Job<Payload>) => data.num1 + data.num2)
  }

  return {
    add: (n) =>
      inBatches(n, async (size, from) => {
        const jobs = Array.from({ length: size }, (_, i) => queue.createJob(payload(from + i)))
        const errors = await queue.saveAll(jobs)
        if (errors.size > 0) throw new Error(`${errors.size} jobs were not saved.`)
      }),
    async work(n) {
      const done = stored.more(n)
      start()
      await done
    },
    async one() {
      start()
      const job = queue.createJob(payload(1))
      const done = new Promise<void>((resolve, reject) => {
        job.on('succeeded', () => resolve())
        job.on('failed', reject)
      })
      await job.save()
      await done
    },
    async stored() {
      const health = await queue.checkHealth()
      return health.succeeded
    },
    close: () => queue.close(0),
  }
}
