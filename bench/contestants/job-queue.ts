import { Queue, RedisStorage } from '@platformatic/job-queue'
import { Redis } from 'ioredis'
import { type Contestant, createCounter, inBatches, type Open, payload } from './contestant.ts'

type Payload = ReturnType<typeof payload>

const CONCURRENCY = 100

/**
 * @platformatic/job-queue on Redis. It has no call for many jobs: a batch is sent at once and awaited together. Ids are its users' to choose.
 * Results: in its results hash, for the hour that is its default.
 */
export const open: Open = async ({ redisUrl }): Promise<Contestant> => {
  const producer = new Queue<Payload, number>({ storage: new RedisStorage({ url: redisUrl }) })
  await producer.start()
  const stored = createCounter()
  let consumer: Queue<Payload, number> | undefined
  let starting: Promise<void> | undefined
  const start = () => {
    if (starting) return starting
    consumer = new Queue<Payload, number>({
      storage: new RedisStorage({ url: redisUrl }),
      concurrency: CONCURRENCY,
      blockTimeout: 1,
    })
    consumer.execute(async (job: { payload: Payload }) => job.payload.num1 + job.payload.num2)
    consumer.on('completed', () => stored.add(1))
    consumer.on('error', (error) => console.error(error))
    starting = consumer.start()
    return starting
  }

  return {
    add: (n) =>
      inBatches(n, (size, from) =>
        Promise.all(Array.from({ length: size }, (_, i) => producer.enqueue(crypto.randomUUID(), payload(from + i)))),
      ),
    async work(n) {
      const done = stored.more(n)
      await start()
      await done
    },
    async one() {
      await start()
      await producer.enqueueAndWait(crypto.randomUUID(), payload(1), { timeout: 10_000 })
    },
    async stored() {
      const redis = new Redis(redisUrl)
      const results = await redis.hlen('jq:results')
      redis.disconnect()
      return results
    },
    async close() {
      await consumer?.stop()
      await producer.stop()
    },
  }
}
