import { createRedisBroker } from '../../shared/broker/redis/redis.ts'
import { createTcpClient } from '../../shared/broker/redis/tcp.ts'
import type { Open } from './contestant.ts'
import { createTasker } from './tasker.ts'

/** Each is a slot: some for each primary. */
const PARTITIONS = 6

/**
 * Tasker on a Redis Cluster of three primaries with a replica each. Results: as on one Redis, in the partition of each
 * task.
 */
export const open: Open = async ({ clusterUrl }) =>
  createTasker(createRedisBroker(createTcpClient({ url: clusterUrl }), { partitions: PARTITIONS }))
