import { createAuth } from '#shared/http/auth.ts'
import { createLogger, type Log } from '#shared/runtime/log.ts'
import { aborted, runMain } from '#shared/runtime/process.ts'
import type { Server } from '#shared/runtime/serve.ts'
import { listen } from '../listen.ts'
import { createApp } from './app.ts'
import { loadRestConfig, type RestConfig } from './config.ts'
import { openConnection } from './connection.ts'
import { createStreams } from './stream.ts'
import { openSubscriptions } from './subscriptions.ts'

/** Starts the endpoint. `stop` ends its streams, answers the requests under way and leaves Redis. */
export async function startRest(
  config: RestConfig,
  log: Log,
  options: { scriptTimeoutMs?: number } = {},
): Promise<Server> {
  const auth = await createAuth([{ token: config.token, scopes: [] }])
  if (auth === null) throw new Error('The endpoint has no token.')
  const [connection, subscriptions] = await Promise.all([
    openConnection({ url: config.redisUrl, token: config.token, log, ...options }),
    openSubscriptions(config.redisUrl),
  ])
  const close = () => {
    subscriptions.close()
    connection.close()
  }
  const app = createApp({ connection, streams: createStreams(subscriptions), auth, log })
  try {
    const server = await listen({ fetch: app.fetch, host: config.host, port: config.port, setting: 'REST_PORT' })
    return {
      url: server.url,
      async stop() {
        subscriptions.close()
        await server.stop()
        connection.close()
      },
    }
  } catch (error) {
    close()
    throw error
  }
}

if (import.meta.main) {
  await runMain('rest', async (signal) => {
    const config = loadRestConfig(process.env)
    const log = createLogger(config.logLevel)
    const server = await startRest(config, log)
    const whom = 'WHO HAS REST_TOKEN CAN READ AND DELETE ALL THAT IS IN THIS REDIS, AND STOP IT WITH A SCRIPT:'
    log.warn(`${whom} give it to services of your own alone.`, { service: 'rest' })
    log.info('Listening.', { service: 'rest', url: server.url })
    await aborted(signal)
    await server.stop()
    log.info('Stopped.', { service: 'rest' })
  })
}
