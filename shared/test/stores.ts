import type { Broker } from '#shared/broker/broker.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'

/** The stores that tests of what stands on a store run over. Each call opens a new, empty one. */
export const stores: { name: string; open(options: { now: () => number }): Broker }[] = [
  { name: 'SQLite', open: ({ now }) => createSqliteBroker({ path: ':memory:', now }) },
  {
    name: 'Redis',
    open: ({ now }) =>
      createRedisBroker(createTcpClient({ url: redisTestUrl() }), { now, namespace: randomNamespace() }),
  },
]

/** The Redis of this test run: started by the preload when the environment does not name one. */
export function redisTestUrl(): string {
  const url = process.env['REDIS_TEST_URL']
  if (!url) throw new Error('REDIS_TEST_URL is not set: run the tests with bun test, which starts a Redis.')
  return url
}

export function randomNamespace(): string {
  return `test-${crypto.randomUUID()}:`
}
