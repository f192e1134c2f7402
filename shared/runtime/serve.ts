import { type Runtime, runtime } from './adapter/runtime.ts'
import { systemClock } from './clock.ts'

/** A service that listens. */
export interface Server {
  /** Where it is reached, without a slash at the end. */
  readonly url: string
  /**
   * Takes no new connections and resolves when the requests under way are answered, or were cut off because they took too long. No caller is
   * waited for: neither for the rest of a body nor, for long, until an answer is read. Calling it twice is harmless.
   */
  stop(): Promise<void>
}

/** What the server knows of a request beside it. */
export interface Connection {
  /** The address at its other end; null when it is gone. */
  address(): string | null
  /** Aborts when the server stops: what has not arrived by then is not waited for. */
  readonly stopping: AbortSignal
}

type Fetch<Of = Connection> = (request: Request, connection: Of) => Response | Promise<Response>

/** How long a connection may be quiet, and how large the headers of a request may be. A longer list or text of headers is answered with 431. */
export interface Limits {
  /** Bytes of headers, with the URL. Bun's own limit, which it does not let be changed. */
  readonly headerBytes: number
  /** Bun's own limit too. */
  readonly headerFields: number
  /** Until a new connection has sent the headers of its first request. Bun's own limit too. */
  readonly headersMs: number
  /** Until a connection that has had an answer has sent the headers of its next request. */
  readonly idleMs: number
}

/** Idle is longer than any answer may take: `?wait=60`, and a little to send it. Bun counts from when the request began. */
const LIMITS: Limits = { headerBytes: 16 * 1024, headerFields: 200, headersMs: 12_000, idleMs: 75_000 }

/**
 * How long requests may go on after a stop. With the grace of workers it stays under the 20 s that containers are given: a handler that
 * hangs must not get the whole process killed.
 */
const STOP_MS = 8_000

/** How long callers may go on, once all are answered, to read that, or to send what nobody reads. */
const FLUSH_MS = 1_000

/** A runtime's server, as its adapter gives it. */
export interface Listener {
  readonly port: number
  /** Takes no new connections and resolves when there is none left: each ends with the request under way on it. */
  drain(): Promise<void>
  /** Ends every connection at once. */
  cut(): void
}

/** Rejects with the runtime's error with code `EADDRINUSE` when another process has the port. */
export type Listen = (options: {
  fetch: Fetch<Pick<Connection, 'address'>>
  host: string
  port: number
  limits: Limits
}) => Promise<Listener>

const adapters: Record<Runtime, () => Promise<{ listen: Listen }>> = {
  bun: () => import('./adapter/bun/serve.ts'),
  // Deno.serve lets a connection send its headers for ever, and has other limits: see docs/decisions.md.
  deno: () => import('./adapter/node/serve.ts'),
  node: () => import('./adapter/node/serve.ts'),
}

/**
 * Listens on a port; 0 takes a free one. All runtimes keep to the same limits.
 *
 * @throws the runtime's error with code `EADDRINUSE` when another process has the port.
 */
export async function serve(options: { fetch: Fetch; host: string; port: number; stopMs?: number }): Promise<Server> {
  const { fetch, host, port, stopMs = STOP_MS } = options
  const { listen } = await adapters[runtime]()
  const stopping = new AbortController()
  const allAnswered = Promise.withResolvers<void>()
  let underWay = 0
  const listener = await listen({
    async fetch(request, { address }) {
      underWay++
      try {
        return await fetch(request, { address, stopping: stopping.signal })
      } finally {
        underWay--
        if (underWay === 0 && stopping.signal.aborted) allAnswered.resolve()
      }
    },
    ...{ host, port, limits: LIMITS },
  })

  async function stop(): Promise<void> {
    stopping.abort()
    if (underWay === 0) allAnswered.resolve()
    const drained = new AbortController()
    const cutOff = async () => {
      await Promise.race([allAnswered.promise, systemClock.sleep(stopMs, drained.signal)])
      await systemClock.sleep(Math.min(FLUSH_MS, stopMs), drained.signal)
      if (!drained.signal.aborted) listener.cut()
    }
    void cutOff()
    await listener.drain()
    drained.abort()
  }
  let stopped: Promise<void> | null = null
  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${listener.port}`,
    stop() {
      stopped ??= stop()
      return stopped
    },
  }
}
