import { Cluster, Redis } from 'ioredis'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { AnswerLost, type RedisClient } from './client.ts'

/**
 * A client over TCP. `url` is `redis://…` or `rediss://…`; with commas between several, they are nodes of a Cluster.
 * It connects by itself, and again when the connection is lost; meanwhile calls fail at once.
 */
export function createTcpClient(options: { url: string; commandTimeoutMs?: number }): RedisClient {
  const own = settings(options.commandTimeoutMs ?? 5_000)
  const main = connect(options.url, own)
  const connected = firstAnswer(main)
  const others = new Set<Redis | Cluster>()
  let closed = false

  return {
    async eval(script, keys, args) {
      if (closed) throw new StoreUnavailable('The connection to the store is closed.')
      try {
        if (main.status !== 'ready') await connected
        const sha = await script.sha()
        return await main.evalsha(sha, keys.length, ...keys, ...args).catch((error: unknown) => {
          if (!isReply(error) || !error.message.startsWith('NOSCRIPT')) throw error
          return main.eval(script.text, keys.length, ...keys, ...args)
        })
      } catch (error) {
        // The client's errors carry the whole command: nothing of them but the first words goes on.
        if (isReply(error)) throw new StoreUnavailable(`Redis refused to ${script.name}: ${reason(error.message)}`)
        throw new AnswerLost(`Redis did not answer to ${script.name}`)
      }
    },

    async publish(channel, message) {
      await main.publish(channel, message).catch(() => undefined)
    },

    async subscribe(channel, on, onGap) {
      const connection = connect(options.url, { ...own, enableOfflineQueue: true, maxRetriesPerRequest: null })
      others.add(connection)
      connection.on('message', (_channel: string, message: string) => {
        if (others.has(connection)) on(message)
      })
      connection.on('ready', onGap)
      const subscribed = connection.subscribe(channel).catch(() => undefined)
      // A server that is away is waited for in the background.
      await Promise.race([subscribed, firstAnswer(connection, ['close', 'end'])])
      return {
        async close() {
          others.delete(connection)
          connection.disconnect()
        },
      }
    },

    async close() {
      if (closed) return
      closed = true
      for (const connection of [main, ...others]) connection.disconnect()
    },
  }
}

function connect(url: string, options: ReturnType<typeof settings>): Redis | Cluster {
  const nodes = url.split(',').map((node) => node.trim())
  const { enableOfflineQueue, retryStrategy, ...redisOptions } = options
  const connection =
    nodes.length > 1
      ? new Cluster(nodes, { redisOptions, enableOfflineQueue, clusterRetryStrategy: retryStrategy })
      : new Redis(url, options)
  // A lost connection shows in the calls that fail; without a listener the client would print it as well.
  connection.on('error', () => undefined)
  return connection
}

function settings(commandTimeout: number) {
  return {
    // A command whose answer was lost must come back to the broker, which marks it before it sends it again.
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0 as number | null,
    enableOfflineQueue: false,
    commandTimeout,
    connectTimeout: CONNECT_TIMEOUT_MS,
    retryStrategy: (times: number) => Math.min(1_000, 50 * 2 ** Math.min(times, 5)) * (0.5 + Math.random() / 2),
  }
}
const CONNECT_TIMEOUT_MS = 5_000

/** Resolves when the first connection is there, or has failed: one that is lost later fails calls at once. */
function firstAnswer(connection: Redis | Cluster, events = ['ready', 'close', 'end']): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, CONNECT_TIMEOUT_MS)
    for (const event of events) {
      connection.once(event, () => {
        clearTimeout(timer)
        resolve()
      })
    }
  })
}

function isReply(error: unknown): error is Error {
  return error instanceof Error && error.name === 'ReplyError'
}

/** A Redis error begins with a code (`OOM`, `READONLY`); of a script's own fault the place is worth keeping. */
function reason(message: string): string {
  const place = /user_script:\d+:[^@]{0,120}/.exec(message)?.[0]
  return place ?? message.split(' ', 1)[0] ?? 'ERR'
}
