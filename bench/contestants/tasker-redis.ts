import { Redis } from 'ioredis'
import { createRedisBroker } from '../../shared/broker/redis/redis.ts'
import { createTcpClient } from '../../shared/broker/redis/tcp.ts'
import type { Open } from './contestant.ts'
import { pushForeign } from './foreign.ts'
import { createTasker } from './tasker.ts'

/** Tasker on Redis over TCP. Results: final records in the hash `tasks`, with payload and times. */
export const open: Open = async ({ redisUrl }) => {
  const tasker = createTasker(createRedisBroker(createTcpClient({ url: redisUrl })))
  return {
    ...tasker,
    async fill(n) {
      const redis = new Redis(redisUrl)
      await pushForeign(redis, n)
      redis.disconnect()
    },
  }
}
