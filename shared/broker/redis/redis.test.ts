import { Redis } from 'ioredis'
import { redisTestUrl } from '#shared/test/stores.ts'
import { testBroker } from '../suite/suite.ts'
import { createRedisBroker } from './redis.ts'
import { createTcpClient } from './tcp.ts'

for (const partitions of [1, 3]) {
  testBroker({
    name: partitions === 1 ? 'Redis over TCP' : `Redis over TCP in ${partitions} partitions`,
    open: async ({ namespace, now }) =>
      createRedisBroker(createTcpClient({ url: redisTestUrl() }), { namespace: `${namespace}:`, now, partitions }),
    async destroy(namespace) {
      const redis = new Redis(redisTestUrl())
      const keys = await redis.keys(`${namespace}:*`)
      if (keys.length > 0) await redis.del(keys)
      redis.disconnect()
    },
    lacks: partitions === 1 ? {} : { order: 'tasks of different partitions have no common order' },
  })
}
