import { Cluster, Redis } from 'ioredis'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { AnswerLost, isCluster, type RedisClient } from './client.ts'
import { REPLICA_CHANNEL } from './keys.ts'

/**
 * A client over TCP. `url` is `redis://…` or `rediss://…`; with commas between several, they are nodes of a Cluster;
 * `redis+sentinel://host:26379,host:26379/name` asks the sentinels for the primary of that name, and follows it when it changes.
 * It connects by itself, and again when the connection is lost; meanwhile calls fail at once.
 *
 * @throws TypeError when replicas are to be waited for on a Cluster, which has no one primary that could be asked.
 */
export function createTcpClient(options: {
  url: string
  commandTimeoutMs?: number
  /** Replicas that must have a change before it counts as stored. With 0, a fail-over may lose what no replica had yet. */
  waitReplicas?: number
}): RedisClient {
  const { waitReplicas = 0, commandTimeoutMs = 5_000 } = options
  if (waitReplicas > 0 && isCluster(options.url)) throw new TypeError('On a Cluster no replicas can be waited for.')
  const own = settings(commandTimeoutMs)
  const main = connect(options.url, own, () => !closed)
  const connected = firstAnswer(main)
  const others = new Set<Redis | Cluster>()
  let closed = false

  return {
    async eval(script, keys, args) {
      if (closed) throw new StoreUnavailable('The connection to the store is closed.')
      try {
        if (main.status !== 'ready') await connected
        const sha = await script.sha()
        const reply = await main.evalsha(sha, keys.length, ...keys, ...args).catch((error: unknown) => {
          if (!isReply(error) || !error.message.startsWith('NOSCRIPT')) throw error
          return main.eval(script.text, keys.length, ...keys, ...args)
        })
        if (waitReplicas > 0 && script.writes) {
          const reached = await replicasReached(main as Redis, waitReplicas, commandTimeoutMs / 2)
          if (reached < waitReplicas) throw new AnswerLost(`${reached} of ${waitReplicas} replicas have ${script.name}`)
        }
        return reply
      } catch (error) {
        if (error instanceof AnswerLost) throw error
        if (isReply(error) && PASSING.test(error.message)) throw new AnswerLost(`Redis cannot ${script.name} now`)
        // The client's errors carry the whole command: nothing of them but the first words goes on.
        if (isReply(error)) {
          throw new StoreUnavailable(`Redis refused to ${script.name}: ${reason(error.message)}`, { refused: true })
        }
        throw new AnswerLost(`Redis did not answer to ${script.name}`)
      }
    },

    async publish(channel, message) {
      await main.publish(channel, message).catch(() => undefined)
    },

    async subscribe(channel, on, onGap) {
      const patient = { ...own, enableOfflineQueue: true, maxRetriesPerRequest: null }
      const connection = connect(options.url, patient, () => others.has(connection))
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
      const all = [main, ...others]
      others.clear()
      for (const connection of all) connection.disconnect()
    },
  }
}

/** Refusals that pass: the server loads its data, has become a replica, or is being replaced. The call did not run, or is harmless to send again. */
const PASSING = /^(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|UNBLOCKED)\b/

/**
 * How many replicas have all that the primary did before: at once when they are enough, else when the time is over. WAIT counts those that have
 * what its own connection wrote last; of one that has written nothing, all of them. A script that finds done what another connection did writes
 * nothing. So a message to nobody goes first: for replicas that is a write.
 */
async function replicasReached(primary: Redis, enough: number, timeoutMs: number): Promise<number> {
  const [, reached] = await Promise.all([primary.publish(REPLICA_CHANNEL, ''), primary.wait(enough, timeoutMs)])
  return reached
}

function connect(url: string, options: ReturnType<typeof settings>, isWanted: () => boolean): Redis | Cluster {
  const connection = open(url, options)
  // A client that is told of a fail-over while it asks a sentinel for the primary tries no more by itself.
  connection.on('end', () => {
    if (isWanted()) void connection.connect().catch(() => undefined)
  })
  // A lost connection shows in the calls that fail; without a listener the client would print it as well.
  connection.on('error', () => undefined)
  return connection
}

function open(url: string, options: ReturnType<typeof settings>): Redis | Cluster {
  const watched = /^redis\+sentinel:\/\/(?:([^:@]*)(?::([^@]*))?@)?([^/@]+)\/(.+)$/.exec(url)
  if (watched) {
    const [, username = '', password = '', hosts = '', name = ''] = watched
    const sentinels = hosts.split(',').map((host) => {
      const [, address = host, port] = /^(.*):(\d+)$/.exec(host) ?? []
      return { host: address, port: Number(port ?? 26_379) }
    })
    return new Redis({
      ...{ ...options, sentinels, name, failoverDetector: true, sentinelRetryStrategy: options.retryStrategy },
      // One that is silent must not be waited for: the next is asked.
      sentinelCommandTimeout: options.commandTimeout,
      ...(username === '' ? {} : { username: decodeURIComponent(username) }),
      ...(password === '' ? {} : { password: decodeURIComponent(password) }),
    })
  }
  if (!isCluster(url)) return new Redis(url, options)
  const nodes = url.split(',').map((node) => node.trim())
  const { enableOfflineQueue, retryStrategy, ...redisOptions } = options
  return new Cluster(nodes, { redisOptions, enableOfflineQueue, clusterRetryStrategy: retryStrategy })
}

function settings(commandTimeout: number) {
  return {
    // A command whose answer was lost must come back to the broker, which marks it before it sends it again.
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0 as number | null,
    enableOfflineQueue: false,
    commandTimeout,
    // Scripts answer in its types, and its parser is the faster one.
    protocol: 2 as const,
    connectTimeout: CONNECT_TIMEOUT_MS,
    // A primary that has become a replica refuses changes: the connection is made anew, to the new one.
    reconnectOnError: (error: Error) => error.message.startsWith('READONLY'),
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
