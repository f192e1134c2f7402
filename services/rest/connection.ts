import { Redis } from 'ioredis'
import type { Log } from '#shared/runtime/log.ts'
import { restrict } from './caller.ts'
import type { Command } from './command.ts'
import { killScript } from './kill.ts'
import { type Reply, ReplyError } from './reply.ts'
import { runsCommands } from './script.ts'

/** Redis gave no reply: it is away, or too slow. Whether it ran the command is unknown. */
export class NoReply extends Error {
  override readonly name = 'NoReply'
}

/** One connection to Redis that carries the commands of all requests. */
export interface Connection {
  /**
   * Writes the commands before it returns, at once and in their order: nothing of another call comes in between. Resolves with a reply for
   * each, and an error reply is one like any other.
   *
   * @throws NoReply when one has none.
   */
  send(commands: readonly Command[]): Promise<readonly Reply[]>
  close(): void
}

const ANSWER_TIMEOUT_MS = 30_000
const CONNECT_TIMEOUT_MS = 5_000

/** A script that has not answered within so many ms is stopped: it holds up everybody. */
const SCRIPT_TIMEOUT_MS = 10_000

export interface ConnectionOptions {
  url: string
  /** What callers have: their user of Redis is named after it. */
  token: string
  log: Log
  scriptTimeoutMs?: number
}

/**
 * Connects by itself, and again when the connection is lost; meanwhile commands fail at once. Each time it gives up the
 * rights that the URL brings before it carries anything. Resolves when Redis answers, or has failed to.
 */
export async function openConnection(options: ConnectionOptions): Promise<Connection> {
  const { url, token, log, scriptTimeoutMs = SCRIPT_TIMEOUT_MS } = options
  const redis = connect(url, { commandTimeout: ANSWER_TIMEOUT_MS })
  const opened = Promise.withResolvers<void>()
  /** The connection that carries commands, by its number; one that is newer is not restricted yet. */
  let [restricted, connections] = [-1, 0]
  redis.on('ready', async () => {
    const mine = ++connections
    try {
      await restrict(redis, token, log)
      restricted = mine
    } catch {
      // It was lost meanwhile.
    }
    opened.resolve()
  })
  for (const event of ['close', 'end']) {
    redis.on(event, () => {
      connections++
      opened.resolve()
    })
  }
  await opened.promise
  let isKilling = false
  const kill = async () => {
    // All that wait behind the script are late, too.
    if (isKilling) return
    isKilling = true
    await killScript(adminOf(url), log)
    isKilling = false
  }

  return {
    async send(commands) {
      if (restricted !== connections) throw new NoReply('Redis does not answer.')
      const pipeline = redis.pipeline()
      for (const { name, args } of commands) {
        // Names in capitals pass by the client's own transformations of arguments and replies.
        pipeline.callBuffer(name, [...args])
      }
      const late = commands.some(({ name }) => runsCommands(name)) ? setTimeout(kill, scriptTimeoutMs) : undefined
      const replies = await pipeline.exec().finally(() => clearTimeout(late))
      return (replies ?? []).map(([error, reply]) => {
        if (error === null) return reply as Reply
        if (error.name === 'ReplyError') return new ReplyError(error.message)
        // The client's own errors carry the command, with all that was in it.
        throw new NoReply('Redis does not answer.')
      })
    },
    close: () => redis.disconnect(),
  }
}

/** A connection that a Redis takes which is busy with a script: it asks for nothing but to log in. */
function adminOf(url: string): Redis {
  const server = new URL(url)
  server.pathname = ''
  return connect(server.href, { commandTimeout: CONNECT_TIMEOUT_MS, enableReadyCheck: false, lazyConnect: true })
}

/** Opens a connection that is only for subscriptions, which it does not renew by itself. */
export async function openSubscriber(url: string): Promise<Redis> {
  const redis = connect(url, { autoResubscribe: false })
  await firstAnswer(redis)
  return redis
}

function connect(
  url: string,
  options: { commandTimeout?: number; autoResubscribe?: boolean; enableReadyCheck?: boolean; lazyConnect?: boolean },
): Redis {
  const redis = new Redis(url, {
    ...options,
    // The shapes that the REST protocol is made of; integers as digits, none of which is lost.
    protocol: 2,
    stringNumbers: true,
    // A command whose reply was lost may have run: only the caller can tell whether to send it again.
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false,
    connectTimeout: CONNECT_TIMEOUT_MS,
    retryStrategy: (times) => Math.min(1_000, 50 * 2 ** Math.min(times, 5)),
  })
  // A lost connection shows in the calls that fail; without a listener the client would print it as well.
  redis.on('error', (error: Error) => {
    // The client would go on in another database than the one that was asked for.
    if (/DB index/.test(error.message)) redis.disconnect(true)
  })
  return redis
}

function firstAnswer(redis: Redis): Promise<void> {
  return new Promise((resolve) => {
    for (const event of ['ready', 'close', 'end']) redis.once(event, () => resolve())
  })
}
