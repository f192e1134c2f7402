/** A service that listens. */
export interface Server {
  /** Where it is reached, without a slash at the end. */
  readonly url: string
  /** Takes no new connections and resolves when the requests under way are answered. Calling it twice is harmless. */
  stop(): Promise<void>
}

/** What the server knows of a request beside it. */
export interface Connection {
  /** The address at its other end; null when it is gone. */
  address(): string | null
}

// Bun closes a connection that has not sent its whole request so long after it began, and one without all headers after 12 s. Longer than any answer may take: `?wait=60`, and a little to send it.
const IDLE_TIMEOUT_S = 75

/**
 * Listens on a port; 0 takes a free one. The one place that knows the runtime's server.
 *
 * @throws the runtime's error with code `EADDRINUSE` when another process has the port.
 */
export function serve(options: {
  fetch: (request: Request, connection: Connection) => Response | Promise<Response>
  host: string
  port: number
}): Server {
  const server = Bun.serve({
    fetch: (request, bun) => options.fetch(request, { address: () => bun.requestIP(request)?.address ?? null }),
    hostname: options.host,
    port: options.port,
    idleTimeout: IDLE_TIMEOUT_S,
  })
  let stopped: Promise<void> | null = null
  return {
    url: server.url.href.replace(/\/$/, ''),
    stop() {
      stopped ??= server.stop()
      return stopped
    },
  }
}
