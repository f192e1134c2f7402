import { Redis } from 'ioredis'
import type { Command } from './command.ts'
import { type Reply, ReplyError } from './reply.ts'

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

/** Connects by itself, and again when the connection is lost; meanwhile commands fail at once. Resolves when Redis answers, or has failed to. */
export async function openConnection(url: string): Promise<Connection> {
  const redis = connect(url, { commandTimeout: ANSWER_TIMEOUT_MS })
  await firstAnswer(redis)
  return {
    async send(commands) {
      const pipeline = redis.pipeline()
      for (const { name, args } of commands) {
        // Names in capitals pass by the client's own transformations of arguments and replies.
        pipeline.callBuffer(name, [...args])
      }
      const replies = await pipeline.exec()
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

/** Opens a connection that is only for subscriptions, which it does not renew by itself. */
export async function openSubscriber(url: string): Promise<Redis> {
  const redis = connect(url, { autoResubscribe: false })
  await firstAnswer(redis)
  return redis
}

function connect(url: string, options: { commandTimeout?: number; autoResubscribe?: boolean }): Redis {
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
  redis.on('error', () => undefined)
  return redis
}

function firstAnswer(redis: Redis): Promise<void> {
  return new Promise((resolve) => {
    for (const event of ['ready', 'close', 'end']) redis.once(event, () => resolve())
  })
}
