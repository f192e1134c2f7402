import type { Context } from 'hono'
import { isDeeperThan, MAX_DEPTH } from '#shared/task/limits.ts'
import { MAX_BODY, tooLarge } from './body.ts'
import { Problem } from './problem.ts'

/** A body must have arrived within so many ms: a client that sends a byte now and then does not hold its connection. */
const BODY_DEADLINE_MS = 30_000

/**
 * The body as JSON.
 *
 * @throws Problem with code `malformed` when it is not JSON in UTF-8, or nested deeper than {@link MAX_DEPTH}, `too_large` when it is that, and
 * `too_slow` when it does not arrive. It does not quote the body, which may hold secrets.
 */
export async function readJson(c: Context, options: { deadlineMs?: number } = {}): Promise<unknown> {
  const text = decode(await readBytes(c.req.raw, options.deadlineMs ?? BODY_DEADLINE_MS))
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

async function readBytes(request: Request, deadlineMs: number): Promise<Uint8Array> {
  // The server holds a body to the length that it states.
  const stated = request.headers.has('Content-Length') && !request.headers.has('Transfer-Encoding')
  const reader = stated ? null : (request.body?.getReader() ?? null)
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const detail = `The body did not arrive within ${deadlineMs / 1000} s.`
      reject(new Problem('too_slow', detail, { headers: { Connection: 'close' } }))
    }, deadlineMs)
  })
  try {
    return await Promise.race([reader ? readStream(reader) : request.bytes(), late])
  } catch (error) {
    void reader?.cancel().catch(() => undefined)
    if (error instanceof Problem) throw error
    throw new Problem('malformed', 'The connection ended before the body did.', { cause: error })
  } finally {
    clearTimeout(timer)
  }
}

async function readStream(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let size = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    size += value.length
    if (size > MAX_BODY) throw tooLarge()
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
