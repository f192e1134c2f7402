import { Cluster, Redis } from 'ioredis'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { AnswerLost, isCluster, type RedisClient } from './client.ts'
import { connected, onPrimary } from './cluster.ts'
import { type Condition, conditionsOf, unchecked } from './condition.ts'
import { REPLICA_CHANNEL, replicaKey } from './keys.ts'
import type { Script } from './scripts.ts'
import { isConsequence, NO_WORD, placeOf, reasonOf } from './trouble.ts'

/**
 * A client over TCP. `url` is `redis://…` or `rediss://…`; with commas between several, they are nodes of a Cluster;
 * `redis+sentinel://host:26379,host:26379/name` asks the sentinels for the primary of that name, and follows it when it changes.
 * It connects by itself, and again when the connection is lost; meanwhile calls fail at once, and say why.
 */
export function createTcpClient(options: {
  url: string
  commandTimeoutMs?: number
  /** Replicas that must have a change before it counts as stored. With 0, a fail-over may lose what no replica had yet. */
  waitReplicas?: number
}): RedisClient {
  const { url, waitReplicas = 0, commandTimeoutMs = 5_000 } = options
  const own = settings(commandTimeoutMs)
  const place = placeOf(url)
  /** Why there is no connection; null while there is one. */
  let trouble: Error | null = new Error(NO_WORD)
  const main = connect(url, own, {
    isWanted: () => !closed,
    onTrouble(error) {
      if (trouble === null || !isConsequence(error)) trouble = error
    },
  })
  main.on('ready', () => {
    trouble = null
  })
  const first = firstAnswer(main)
  const others = new Set<Redis | Cluster>()
  let closed = false

  /** Sends a script to the server that has its keys, and gives that server too. */
  async function send(script: Script, keys: string[], args: (string | number)[]) {
    const sha = await script.sha()
    async function to(primary: Redis) {
      const reply = await primary.evalsha(sha, keys.length, ...keys, ...args).catch((error: unknown) => {
        if (!isReply(error) || !error.message.startsWith('NOSCRIPT')) throw error
        return primary.eval(script.text, keys.length, ...keys, ...args)
      })
      return { reply, primary }
    }
    return main instanceof Cluster ? onPrimary(main, keys[0] ?? '', to) : to(main)
  }

  /**
   * What is told of a call that failed. The client's errors carry the whole command: nothing of them but known words
   * goes on.
   */
  function failed(error: unknown, name: string): Error {
    if (error instanceof AnswerLost) return error
    if (isReply(error) && PASSING.test(error.message)) {
      return new AnswerLost(`Redis at ${place} cannot ${name} now (${error.message.split(' ', 1)[0]})`)
    }
    if (isReply(error)) {
      return new StoreUnavailable(`Redis at ${place} refused to ${name}: ${reasonOf(error)}`, { refused: true })
    }
    const cause = trouble !== null && !isTimeout(error) ? trouble : error
    const why = cause instanceof Error ? reasonOf(cause) : 'no answer'
    return new AnswerLost(`Redis at ${place} did not answer to ${name}: ${why}`)
  }

  return {
    isBilled: false,

    async eval(script, keys, args) {
      if (closed) throw new StoreUnavailable('The connection to the store is closed.')
      try {
        if (main.status !== 'ready') await first
        const { reply, primary } = await send(script, keys, args)
        if (waitReplicas > 0 && script.writes) {
          const touched = main instanceof Cluster ? replicaKey(keys) : null
          const reached = await replicasReached(primary, {
            enough: waitReplicas,
            timeoutMs: commandTimeoutMs / 2,
            touched,
          })
          if (reached < waitReplicas) throw new AnswerLost(`${reached} of ${waitReplicas} replicas have ${script.name}`)
        }
        return reply
      } catch (error) {
        throw failed(error, script.name)
      }
    },

    async check() {
      if (closed) throw new StoreUnavailable('The connection to the store is closed.')
      try {
        if (main.status !== 'ready') await first
        const servers = main instanceof Cluster ? main.nodes('master') : [main]
        if (main.status !== 'ready') throw trouble ?? new Error('There is no connection.')
        const failsOver = main instanceof Cluster || url.startsWith('redis+sentinel:')
        return (await Promise.all(servers.map((server) => askOf(server, { waitReplicas, failsOver })))).flat()
      } catch (error) {
        throw failed(error, 'connect')
      }
    },

    async publish(channel, message) {
      // Any node of a Cluster takes a message, and all pass it on. It is always the same one, so that messages keep
      // their order.
      const to = (server: Redis) => server.publish(channel, message)
      await (main instanceof Cluster ? onPrimary(main, channel, to) : to(main)).catch(() => undefined)
    },

    async subscribe(channel, on, onGap) {
      const patient = { ...own, enableOfflineQueue: true, maxRetriesPerRequest: null }
      const connection = connect(url, patient, { isWanted: () => others.has(connection) })
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

/**
 * Refusals that pass: the server loads its data, has become a replica, is being replaced, or a slot is on its way to
 * another. The call did not run, or is harmless to send again.
 */
const PASSING = /^(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|ASK|UNBLOCKED)\b/

/**
 * How many replicas have all that the primary did before: at once when they are enough, else when the time is over. WAIT counts those that have
 * what its own connection wrote last; of one that has written nothing, all of them. A script that finds done what another connection did writes
 * nothing. So something that replicas are told goes first: a message to nobody, or on a Cluster, where messages take
 * another way, `touched`.
 */
async function replicasReached(
  primary: Redis,
  { enough, timeoutMs, touched }: { enough: number; timeoutMs: number; touched: string | null },
): Promise<number> {
  const told = touched === null ? primary.publish(REPLICA_CHANNEL, '') : primary.set(touched, '')
  const [, reached] = await Promise.all([told, primary.wait(enough, timeoutMs)])
  return reached
}

/** What one server says of itself; where it does not say so, that. */
async function askOf(server: Redis, options: { waitReplicas: number; failsOver: boolean }): Promise<Condition[]> {
  await connected(server)
  const redis = `${server.options.host}:${server.options.port}`
  try {
    return conditionsOf(await server.info(), { redis, ...options })
  } catch (error) {
    if (isReply(error)) return [unchecked(redis)]
    throw error
  }
}

function connect(
  url: string,
  options: ReturnType<typeof settings>,
  { isWanted, onTrouble = () => undefined }: { isWanted: () => boolean; onTrouble?: (error: Error) => void },
): Redis | Cluster {
  const connection = open(url, options, onTrouble)
  // A client that is told of a fail-over while it asks a sentinel for the primary tries no more by itself.
  connection.on('end', () => {
    if (isWanted()) void connection.connect().catch(() => undefined)
  })
  // A lost connection shows in the calls that fail; without a listener the client would print it as well.
  connection.on('error', (error: Error & { lastNodeError?: Error | null }) => {
    const { lastNodeError } = error
    onTrouble(lastNodeError && !isConsequence(lastNodeError) ? lastNodeError : error)
    // The client would go on in another database than the one that was asked for.
    if (/DB index/.test(error.message) && connection instanceof Redis) connection.disconnect(true)
  })
  return connection
}

function open(url: string, options: ReturnType<typeof settings>, onTrouble: (error: Error) => void): Redis | Cluster {
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
  return new Cluster(nodes, {
    ...{ redisOptions, enableOfflineQueue },
    // Each connection looks its host up by itself: one that is not known keeps nobody from the other nodes.
    dnsLookup: (host, callback) => callback(null, host),
    // Whatever goes through the client's own sending (messages, which are hints) is sent once too: see cluster.ts.
    ...{ retryDelayOnFailover: 0, retryDelayOnClusterDown: 0, maxRedirections: 0 },
    clusterRetryStrategy(times, reason) {
      if (reason) onTrouble(reason)
      return retryStrategy(times)
    },
  })
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

function isTimeout(error: unknown): boolean {
  return error instanceof Error && error.message === 'Command timed out'
}
