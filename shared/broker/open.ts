import type { StoreConfig } from '#shared/runtime/config.ts'
import type { Log } from '#shared/runtime/log.ts'
import type { Broker } from './broker.ts'

/**
 * Opens the store that the configuration names. Only its own driver is loaded.
 *
 * @throws StoreUnavailable when it cannot be opened.
 */
export async function openBroker(
  store: StoreConfig,
  options: { partitions: number; log: Log; now?: () => number },
): Promise<Broker> {
  const { partitions, log, now = Date.now } = options
  log.debug('Opening the store.', { type: store.type })
  switch (store.type) {
    case 'sqlite': {
      const { createSqliteBroker } = await import('./sqlite/sqlite.ts')
      return createSqliteBroker({ path: store.path, now })
    }
    case 'redis': {
      const { createRedisBroker } = await import('./redis/redis.ts')
      const { createTcpClient } = await import('./redis/tcp.ts')
      return createRedisBroker(createTcpClient({ url: store.url, waitReplicas: store.waitReplicas }), {
        partitions,
        now,
      })
    }
    case 'upstash': {
      const { createRedisBroker } = await import('./redis/redis.ts')
      const { createRestClient } = await import('./redis/rest.ts')
      return createRedisBroker(createRestClient({ url: store.url, token: store.token }), { partitions, now })
    }
  }
}
