import { Redis } from 'ioredis'
import sumWorker from '../../services/workers/sum/worker.ts'
import { buildRecord } from '../../shared/task/record.ts'
import { type Envelope, encodeEnvelope } from '../../shared/task/task.ts'
import { type Contestant, createCounter, inBatches, type Open, payload } from './contestant.ts'
import { pushForeign, QUEUE } from './foreign.ts'

/** Tasks taken in one RPOP. */
const TAKE = 500

/**
 * What the client and Redis can do at most: the same texts as Tasker's, moved by bare LPUSH, RPOP and HSET. No lease, no token, no event: a crash
 * loses what was taken. Results: records in a hash, as Tasker's.
 */
export const open: Open = async ({ redisUrl }): Promise<Contestant> => {
  const redis = new Redis(redisUrl)
  const stored = createCounter()
  let working = false
  let closed = false

  async function loop(): Promise<void> {
    let taken = await take()
    while (!closed) {
      if (taken.length === 0) {
        await Bun.sleep(0)
        taken = await take()
        continue
      }
      // The next ones are under way while these are stored.
      const next = take()
      const fields = taken.flatMap(run)
      const count = taken.length
      const storing = redis.hset('tasks', ...fields).then(() => stored.add(count))
      taken = await next
      await storing
    }
  }
  const take = async () => (await redis.rpop(QUEUE, TAKE)) ?? []

  return {
    add: (n) =>
      inBatches(n, (size, from) =>
        redis.lpush(QUEUE, ...Array.from({ length: size }, (_, i) => envelopeOf(payload(from + i)))),
      ),
    fill: (n) => pushForeign(redis, n),
    async work(n) {
      const done = stored.more(n)
      if (!working) void loop().catch(() => undefined)
      working = true
      await done
    },
    stored: () => redis.hlen('tasks'),
    async close() {
      closed = true
      redis.disconnect()
    },
  }
}

function envelopeOf(payload: unknown): string {
  return encodeEnvelope({ task_id: crypto.randomUUID(), kind: 'sum', payload, created_at: Date.now() })
}

function run(text: string): [string, string] {
  const envelope = JSON.parse(text) as Envelope & { payload: ReturnType<typeof payload> }
  const now = Date.now()
  const record = buildRecord({
    ...{ contract: sumWorker.contract, envelope, state: 'succeeded', statusCode: 200, attempt: 1, calls: 0, steps: 0 },
    result: envelope.payload.num1 + envelope.payload.num2,
    startedAt: now,
    finishedAt: now,
  })
  return [envelope.task_id, JSON.stringify(record)]
}
