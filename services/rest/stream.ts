import type { Kind, Subscriptions } from './subscriptions.ts'

/** Subscriptions as streams of server-sent events. */
export interface Streams {
  /**
   * Resolves when Redis has confirmed the subscription. The stream begins with a line for each name, and ends when the reader leaves
   * (`signal`), when messages may have been missed, or when it is too far behind.
   *
   * @throws NoReply
   */
  open(kind: Kind, names: readonly string[], signal: AbortSignal): Promise<ReadableStream<Uint8Array>>
  /** How many are open. */
  readonly size: number
}

export interface StreamOptions {
  /** How often a comment keeps a stream open; 5 s when left out, as some servers and proxies end a connection that is quiet for 10. */
  heartbeatMs?: number
  /** How much may wait for a slow reader; 16 MB when left out. */
  maxUnreadBytes?: number
}

export function createStreams(subscriptions: Subscriptions, options: StreamOptions = {}): Streams {
  const { heartbeatMs = 5_000, maxUnreadBytes = 16 * 1024 * 1024 } = options
  const open = new Set<() => void>()
  const encoder = new TextEncoder()

  return {
    get size() {
      return open.size
    },
    async open(kind, names, signal) {
      let controller: ReadableStreamDefaultController<Uint8Array> | undefined
      let leave: () => void = () => undefined
      let early: string[] | null = []

      const end = () => {
        if (!open.delete(end)) return
        clearInterval(heartbeat)
        signal.removeEventListener('abort', end)
        leave()
        try {
          controller?.close()
        } catch {
          // The reader was faster.
        }
      }
      const write = (chunk: string) => {
        if (early !== null) early.push(chunk)
        else if (open.has(end)) {
          controller?.enqueue(encoder.encode(chunk))
          if ((controller?.desiredSize ?? 0) < -maxUnreadBytes) end()
        }
      }
      const heartbeat = setInterval(() => write(': still here\n\n'), heartbeatMs)
      const stream = new ReadableStream<Uint8Array>(
        {
          start(own) {
            controller = own
          },
          cancel: end,
        },
        new ByteLengthQueuingStrategy({ highWaterMark: 0 }),
      )
      open.add(end)
      signal.addEventListener('abort', end)
      if (signal.aborted) end()
      try {
        const message = kind === 'subscribe' ? 'message' : 'pmessage'
        const joined = await subscriptions.join(kind, names, {
          message: (about, text) => write(event([message, ...about, text].join(','))),
          end,
        })
        leave = joined
        // The reader may have left meanwhile, before there was anything to leave.
        if (!open.has(end)) joined()
      } catch (error) {
        end()
        throw error
      }
      const waiting = early
      early = null
      for (const [index, name] of names.entries()) write(event(`${kind},${name},${index + 1}`))
      for (const chunk of waiting) write(chunk)
      return stream
    },
  }
}

// A text of several lines is one event with as many data lines. Only the first is written with a space, which readers that take each such line
// for an event of its own insist on.
function event(data: string): string {
  return `data: ${data.replaceAll('\n', '\ndata:').replaceAll('\ndata: ', '\ndata:  ')}\n\n`
}
