import { systemClock } from '#shared/runtime/clock.ts'
import type { StoreConfig } from '#shared/runtime/config.ts'
import type { Log } from '#shared/runtime/log.ts'
import type { Broker } from './broker.ts'
import type { RedisClient } from './redis/client.ts'

/** A Redis that cannot be used is said once; whether it can be used by now is looked at so often. */
const LOOK_AGAIN_MS = 1_000

/**
 * Opens the store that the configuration names. Only its own driver is loaded. A Redis need not be there yet: that it
 * cannot be used, and what is wrong with how it is set up, is logged.
 *
 * @throws StoreUnavailable when it cannot be opened.
 */
export async function openBroker(
  store: StoreConfig,
  options: { partitions: number; log: Log; now?: () => number },
): Promise<Broker> {
  const { partitions, log, now = Date.now } = options
  log.debug('Opening the store.', { type: store.type })
  if (store.type === 'sqlite') {
    const { createSqliteBroker } = await import('./sqlite/sqlite.ts')
    return createSqliteBroker({ path: store.path, now })
  }
  const { createRedisBroker } = await import('./redis/redis.ts')
  const { agreeing } = await import('./redis/agreement.ts')
  const bare = await openClient(store)
  // Over REST every command is billed: one partition, which is the default, is not asked about.
  const client = bare.isBilled && partitions === 1 ? bare : agreeing(bare, { partitions })
  const closing = new AbortController()
  void sayCondition(client, log, closing.signal)
  const broker = createRedisBroker(client, { partitions, now })
  return {
    ...broker,
    close() {
      closing.abort()
      return broker.close()
    },
  }
}

async function openClient(store: Exclude<StoreConfig, { type: 'sqlite' }>): Promise<RedisClient> {
  if (store.type === 'redis') {
    const { createTcpClient } = await import('./redis/tcp.ts')
    return createTcpClient({ url: store.url, waitReplicas: store.waitReplicas })
  }
  const { createRestClient } = await import('./redis/rest.ts')
  return createRestClient({ url: store.url, token: store.token })
}

/** Says on one line whether Redis can be used, and on one more for each thing that its operator should change. */
async function sayCondition(client: RedisClient, log: Log, signal: AbortSignal): Promise<void> {
  for (let away = false; !signal.aborted; ) {
    try {
      const conditions = await client.check()
      if (signal.aborted) return
      log.info('The store answers.')
      for (const { level, message, fields } of conditions) log[level](message, fields)
      return
    } catch (error) {
      if (!away && !signal.aborted) {
        const { message } = error instanceof Error ? error : { message: String(error) }
        log.error('The store cannot be used yet; trying on.', { reason: message })
      }
      away = true
      await systemClock.sleep(LOOK_AGAIN_MS, signal)
    }
  }
}
