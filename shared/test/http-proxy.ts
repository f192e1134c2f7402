/** What happens to the next request. */
export type Fault =
  /** It never reaches the server. */
  | 'lost request'
  /** The server acts, and its answer is lost. */
  | 'lost answer'
  | '500'
  | '429'
  /** The server acts, and its answer does not come before the proxy is closed. */
  | 'stall'

export interface HttpProxy {
  readonly url: string
  /** Faults of the next requests, in turn; after them all goes well. Streams are not counted. */
  inject(...faults: Fault[]): void
  /** Ends the streams that are open. */
  cutStreams(): void
  /** Resolves when a stream has been opened again. */
  nextStream(): Promise<void>
  close(): Promise<void>
}

/** An HTTP proxy that loses, refuses and stalls what goes through it. */
export function startHttpProxy(target: string): HttpProxy {
  const faults: Fault[] = []
  let streams = new AbortController()
  let opened = Promise.withResolvers<void>()
  const closing = Promise.withResolvers<Response>()
  const lost = () => new Response('the proxy lost it', { status: 502 })

  const server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    async fetch(request) {
      const { pathname } = new URL(request.url)
      const isStream = pathname.startsWith('/subscribe/')
      const fault = isStream ? undefined : faults.shift()
      if (fault === 'lost request') return lost()
      if (fault === '500') return new Response('<h1>Internal Server Error</h1>', { status: 500 })
      if (fault === '429') return Response.json({ error: 'Too Many Requests' }, { status: 429 })
      const response = await fetch(target + pathname, {
        method: request.method,
        headers: request.headers,
        ...(request.method === 'GET' ? {} : { body: await request.arrayBuffer() }),
        signal: isStream ? AbortSignal.any([streams.signal, request.signal]) : null,
      })
      if (isStream) {
        opened.resolve()
        opened = Promise.withResolvers()
        return new Response(untilItBreaks(response.body), { headers: response.headers })
      }
      if (fault === 'lost answer') return lost()
      if (fault === 'stall') return closing.promise
      return response
    },
  })
  return {
    url: server.url.href.replace(/\/$/, ''),
    inject: (...next) => void faults.push(...next),
    cutStreams() {
      streams.abort()
      streams = new AbortController()
    },
    nextStream: () => opened.promise,
    async close() {
      streams.abort()
      closing.resolve(lost())
      await server.stop(true)
    },
  }
}

/** The same stream, but that it ends where the other one fails. */
function untilItBreaks(stream: ReadableStream<Uint8Array> | null): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async start(controller) {
      try {
        for await (const chunk of stream ?? []) controller.enqueue(chunk)
        controller.close()
      } catch {
        // Whoever listened may be gone as well.
        if (controller.desiredSize !== null) controller.close()
      }
    },
  })
}
