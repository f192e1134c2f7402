import type { Redis } from 'ioredis'
import { uuidv7 } from 'uuidv7'
import { kindKeys } from '../../shared/broker/redis/keys.ts'
import { inBatches, payload } from './contestant.ts'

/** The list that producers push to: the queue of normal priority. */
export const QUEUE = kindKeys('', 'sum')[1] ?? ''

/** Queues n tasks as a producer in any language would: one LPUSH, two fields. */
export function pushForeign(redis: Redis, n: number): Promise<void> {
  return inBatches(n, (size, from) =>
    redis.lpush(
      QUEUE,
      ...Array.from({ length: size }, (_, i) => JSON.stringify({ task_id: uuidv7(), payload: payload(from + i) })),
    ),
  )
}
