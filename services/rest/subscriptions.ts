import type { Redis } from 'ioredis'
import { NoReply, openSubscriber } from './connection.ts'

/** What a stream listens to: channels by their names, or all whose names match patterns. */
export type Kind = 'subscribe' | 'psubscribe'

/** Subscriptions of many listeners over one connection to Redis. */
export interface Subscriptions {
  /**
   * Resolves when Redis has confirmed every name; messages may come before. `on.end` is called once when no more will come although
   * nobody left: the connection was lost, or is closed.
   *
   * @throws NoReply
   */
  join(kind: Kind, names: readonly string[], on: Listener): Promise<() => void>
  /** Ends every subscription. */
  close(): void
}

export interface Listener {
  /** `about` is the channel, after the pattern that it matched if there is one. */
  message(about: readonly string[], text: string): void
  end(): void
}

interface Entry {
  readonly listeners: Set<Listener>
  readonly confirmed: Promise<unknown>
}

export async function openSubscriptions(url: string): Promise<Subscriptions> {
  const redis = await openSubscriber(url)
  const entries: Record<Kind, Map<string, Entry>> = { subscribe: new Map(), psubscribe: new Map() }

  const deliver = (kind: Kind, name: string, about: readonly string[], message: Buffer) => {
    const text = message.toString()
    for (const listener of entries[kind].get(name)?.listeners ?? []) listener.message(about, text)
  }
  redis.on('messageBuffer', (channel: Buffer, message: Buffer) => {
    deliver('subscribe', channel.toString(), [channel.toString()], message)
  })
  redis.on('pmessageBuffer', (pattern: string, channel: Buffer, message: Buffer) => {
    deliver('psubscribe', pattern, [pattern, channel.toString()], message)
  })
  // Messages were missed: a stream that ends tells its reader so, one that goes on would not.
  const endAll = () => {
    const listeners = Object.values(entries).flatMap((map) =>
      [...map.values()].flatMap((entry) => [...entry.listeners]),
    )
    for (const map of Object.values(entries)) map.clear()
    for (const listener of new Set(listeners)) listener.end()
  }
  redis.on('close', endAll)

  const add = (kind: Kind, name: string, listener: Listener): Promise<unknown> => {
    let entry = entries[kind].get(name)
    if (entry === undefined) {
      entry = { listeners: new Set(), confirmed: subscribe(redis, kind, name) }
      entries[kind].set(name, entry)
    }
    entry.listeners.add(listener)
    return entry.confirmed
  }
  const remove = (kind: Kind, name: string, listener: Listener) => {
    const entry = entries[kind].get(name)
    if (!entry?.listeners.delete(listener) || entry.listeners.size > 0) return
    entries[kind].delete(name)
    const gone = kind === 'subscribe' ? redis.unsubscribe(name) : redis.punsubscribe(name)
    gone.catch(() => undefined)
  }

  return {
    async join(kind, names, on) {
      const leave = () => {
        for (const name of names) remove(kind, name, on)
      }
      try {
        await Promise.all(names.map((name) => add(kind, name, on)))
      } catch {
        leave()
        throw new NoReply('Redis does not answer.')
      }
      return leave
    },
    close() {
      redis.disconnect()
      endAll()
    },
  }
}

function subscribe(redis: Redis, kind: Kind, name: string): Promise<unknown> {
  return kind === 'subscribe' ? redis.subscribe(name) : redis.psubscribe(name)
}
