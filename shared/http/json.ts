import type { Context } from 'hono'
import { isDeeperThan, MAX_DEPTH } from '#shared/task/limits.ts'
import { type BaseEnv, MAX_BODY, tooLarge } from './body.ts'
import { Problem } from './problem.ts'

/** A body must have arrived within so many ms: a client that sends a byte now and then does not hold its connection. */
const BODY_DEADLINE_MS = 30_000

/**
 * The body as JSON.
 *
 * @throws Problem with code `malformed` when it is not JSON in UTF-8, or nested deeper than {@link MAX_DEPTH},
 * `too_large` when it is that, `too_slow` when it does not arrive, and `stopping` when the service is told to stop
 * before it has. It does not quote the body, which may hold secrets.
 */
export async function readJson(c: Context<BaseEnv>, options: { deadlineMs?: number } = {}): Promise<unknown> {
  const text = decode(await readBytes(c, options.deadlineMs ?? BODY_DEADLINE_MS))
  if (text.trim() === '') throw new Problem('malformed', 'The body is empty: it must be JSON.')
  if (isDeeperThan(MAX_DEPTH, text)) {
    throw new Problem('malformed', `The body is nested too deeply: ${MAX_DEPTH} levels are allowed.`)
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    const position = /at position (\d+)/.exec(String(error))?.[1]
    throw new Problem('malformed', `The body is not valid JSON${position ? `: see character ${position}` : ''}.`)
  }
}

async function readBytes(c: Context<BaseEnv>, deadlineMs: number): Promise<Uint8Array> {
  const request = c.req.raw
  // The server holds a body to the length that it states.
  const stated = request.headers.has('Content-Length') && !request.headers.has('Transfer-Encoding')
  const reader = stated ? null : (request.body?.getReader() ?? null)
  const stopping: unknown = Reflect.get(Object(c.env), 'stopping')
  const over = new AbortController()
  const late = new Promise<never>((_, reject) => {
    const give = (code: 'too_slow' | 'stopping', detail: string) => {
      const again: Record<string, string> = code === 'stopping' ? { 'Retry-After': '1' } : {}
      reject(new Problem(code, detail, { headers: { ...again, Connection: 'close' } }))
    }
    const timer = setTimeout(give, deadlineMs, 'too_slow', `The body did not arrive within ${deadlineMs / 1000} s.`)
    over.signal.addEventListener('abort', () => clearTimeout(timer))
    if (!(stopping instanceof AbortSignal)) return
    const stop = () => give('stopping', 'The service was told to stop before the body arrived. Nothing was accepted.')
    if (stopping.aborted) stop()
    else stopping.addEventListener('abort', stop, { once: true, signal: over.signal })
  })
  try {
    return await Promise.race([reader ? readStream(reader, c.get('body')) : request.bytes(), late])
  } catch (error) {
    void reader?.cancel().catch(() => undefined)
    if (error instanceof Problem) throw error
    throw new Problem('malformed', 'The connection ended before the body did.', { cause: error })
  } finally {
    over.abort()
  }
}

async function readStream(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  body: BaseEnv['Variables']['body'],
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let size = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    size += value.length
    if (size > MAX_BODY) throw tooLarge()
    body?.hold(value.length)
    chunks.push(value)
  }
  const bytes = new Uint8Array(size)
  let at = 0
  for (const chunk of chunks) {
    bytes.set(chunk, at)
    at += chunk.length
  }
  return bytes
}

const decoder = new TextDecoder('utf-8', { fatal: true })

function decode(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes)
  } catch {
    throw new Problem('malformed', 'The body is not valid UTF-8, as JSON must be.')
  }
}
