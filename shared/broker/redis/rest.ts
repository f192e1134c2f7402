import { Redis } from '@upstash/redis'
import { systemClock } from '#shared/runtime/clock.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { AnswerLost, type RedisClient } from './client.ts'
import { reasonOf } from './trouble.ts'

/** Upstash locks the whole database for a script unless its first line says that all keys are declared. Stock Redis refuses the line. */
const SHEBANG = '#!lua flags=allow-key-locking\n'

export interface RestClientOptions {
  url: string
  token: string
  /** Called for each HTTP request: edge runtimes allow only so many. */
  onRequest?: () => void
  timeoutMs?: number
  /** A subscription that has been silent for so long is made anew: it may have died without a word. In ms. */
  silenceMs?: number
}

/** A client over REST: Upstash, or anything that speaks its protocol. One HTTP request a call. */
export function createRestClient(options: RestClientOptions): RedisClient {
  const { timeoutMs = 10_000, silenceMs = 3_600_000, onRequest = () => undefined } = options
  const closing = new AbortController()
  const place = URL.parse(options.url)?.host ?? 'no URL'
  const redis = new Redis({
    url: options.url,
    token: options.token,
    // A call that is sent again must be marked as such, so the broker does it.
    retry: { retries: 0 },
    enableAutoPipelining: false,
    automaticDeserialization: false,
    enableTelemetry: false,
    responseEncoding: false,
    // As a function, so that a time-out rejects: with a plain signal it would look like an empty answer.
    signal: deadline,
  })

  /** A signal costs nearly as much as its request: those that are sent within a tenth of the time share one. */
  let shared = { signal: closing.signal, until: 0 }
  function deadline(): AbortSignal {
    const now = performance.now()
    if (now < shared.until) return shared.signal
    const signal = AbortSignal.any([closing.signal, AbortSignal.timeout(timeoutMs)])
    shared = { signal, until: now + timeoutMs / 10 }
    return signal
  }

  async function send<T>(name: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      // The SDK's errors carry the whole command: nothing of them but a code goes on.
      const code = replyCode(error)
      if (code === 'NOSCRIPT') throw error
      const reason = error instanceof Error ? reasonOf(error, 'REST') : 'no answer'
      if (code)
        throw new StoreUnavailable(`Redis over REST at ${place} refused to ${name}: ${reason}.`, { refused: true })
      throw new AnswerLost(`Redis over REST at ${place} did not answer to ${name}: ${reason}`)
    }
  }

  return {
    isBilled: true,

    async eval(script, keys, args) {
      if (closing.signal.aborted) throw new StoreUnavailable('The connection to the store is closed.')
      // Before anything is waited for: who counts its requests must know of those that are on their way.
      onRequest()
      const hash = await script.sha(SHEBANG)
      const texts = args.map(String)
      try {
        return await send(script.name, () => redis.evalsha(hash, keys, texts))
      } catch (error) {
        if (replyCode(error) !== 'NOSCRIPT') throw error
        onRequest()
        return send(script.name, () => redis.eval(SHEBANG + script.text, keys, texts))
      }
    },

    async check() {
      // How it is set up is its provider's affair, and INFO would tell of the Redis that it resembles.
      onRequest()
      await send('connect', () => redis.ping())
      return []
    },

    async publish(channel, message) {
      onRequest()
      await send('publish', () => redis.publish(channel, message)).catch(() => undefined)
    },

    async subscribe(channel, on, onGap) {
      const ended = new AbortController()
      const signal = AbortSignal.any([closing.signal, ended.signal])
      const first = Promise.withResolvers<void>()
      void (async () => {
        for (let failures = 0; !signal.aborted; ) {
          onRequest()
          const lived = await listen(options, { channel, signal, silenceMs, on, onOpen })
          failures = lived ? 0 : failures + 1
          first.resolve()
          const waitMs = Math.min(60_000, 250 * 2 ** Math.min(failures, 10)) * (0.5 + Math.random() / 2)
          await systemClock.sleep(waitMs, signal)
        }
      })()
      function onOpen() {
        first.resolve()
        onGap()
      }
      await first.promise
      return {
        async close() {
          ended.abort()
        },
      }
    },

    async close() {
      closing.abort()
    },
  }
}

/** Follows one stream of messages until it ends, fails, or is silent for too long. Gives whether it was ever open. */
async function listen(
  { url, token }: RestClientOptions,
  subscription: {
    channel: string
    signal: AbortSignal
    silenceMs: number
    on: (message: string) => void
    onOpen: () => void
  },
): Promise<boolean> {
  const { channel, signal, silenceMs, on, onOpen } = subscription
  const silent = new AbortController()
  let timer: ReturnType<typeof setTimeout> | undefined
  const heard = () => {
    clearTimeout(timer)
    timer = setTimeout(() => silent.abort(), silenceMs)
  }
  let open = false
  try {
    heard()
    const response = await fetch(`${url.replace(/\/$/, '')}/subscribe/${encodeURIComponent(channel)}`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${token}`, Accept: 'text/event-stream' },
      signal: AbortSignal.any([signal, silent.signal]),
    })
    if (!response.ok || !response.body) return false
    let rest = ''
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      heard()
      const lines = (rest + chunk).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) {
        if (line.startsWith('data: subscribe,')) {
          open = true
          onOpen()
        }
        const message = `data: message,${channel},`
        if (line.startsWith(message)) on(line.slice(message.length).trimEnd())
      }
    }
  } catch {
    // A stream that breaks is made anew, as one that ends.
  } finally {
    clearTimeout(timer)
  }
  return open
}

/** The code that an error reply of Redis begins with (`OOM`, `WRONGPASS`); null for everything that is not such a reply: a time-out, a proxy's page, a rate limit. */
function replyCode(error: unknown): string | null {
  if (!(error instanceof Error) || error.name !== 'UpstashError') return null
  return /^[A-Z]{3,}\b/.exec(error.message)?.[0] ?? (/^unauthorized/i.test(error.message) ? 'WRONGPASS' : null)
}
