import { Redis } from 'ioredis'
import { createRedisBroker } from '../../shared/broker/redis/redis.ts'
import { createRestClient } from '../../shared/broker/redis/rest.ts'
import type { Open } from './contestant.ts'
import { pushForeign } from './foreign.ts'
import { createTasker } from './tasker.ts'

/** An idle worker over REST polls rarely, as every command is billed: the pace of the product's entry points. */
const PACE = { pollMs: 360_000, sweepMs: 3_600_000 }

/** Tasker on Redis over REST, through the project's own endpoint. Results: as over TCP. */
export const open: Open = async ({ redisUrl, rest }) => {
  const tasker = createTasker(createRedisBroker(createRestClient(rest)), PACE)
  return {
    ...tasker,
    async fill(n) {
      const redis = new Redis(redisUrl)
      await pushForeign(redis, n)
      redis.disconnect()
    },
  }
}
