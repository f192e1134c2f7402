import OpenAI from 'openai'
import { PermanentError, RetryLater } from '#shared/task/errors.ts'
import { maskSecrets } from '#shared/task/mask.ts'
import { parseRetryAfter } from '#shared/task/retry.ts'
import { type Implementation, implement } from '#shared/worker/implement.ts'
import { chat } from './contract.ts'

/** The chat worker, for a provider that speaks OpenAI's Chat Completions: OpenAI itself when `baseUrl` is null. */
export function createChat(options: {
  baseUrl: string | null
  model: string
  now?: () => number
  /** Counts or replaces the requests to the provider. */
  fetch?: typeof fetch
}): Implementation<typeof chat> {
  const { now = Date.now } = options
  return implement(chat, async ({ question, api_key, model }, ctx) => {
    // In no header, so in no request: nobody would ever accept it.
    if (!/^[\x20-\x7e]+$/.test(api_key)) throw invalidKey()
    const client = new OpenAI({
      apiKey: api_key,
      baseURL: options.baseUrl,
      // Waiting is the queue's business.
      maxRetries: 0,
      timeout: chat.timeoutMs,
      // With OPENAI_LOG set it would print what the provider answers, which may quote the key.
      logLevel: 'off',
      fetch: bounded(options.fetch ?? fetch),
      // A question that is asked again elsewhere would be a GET, and without its key.
      fetchOptions: { redirect: 'manual' },
    })
    try {
      const response = await client.chat.completions
        .create(
          { model: model ?? options.model, messages: [{ role: 'user', content: question }] },
          // The client's own option sets no header. Ids of foreign tasks may have characters that no header may have.
          { signal: ctx.signal, headers: { 'Idempotency-Key': encodeURIComponent(ctx.idempotencyKey) } },
        )
        .asResponse()
      const body = await response.text().catch((cause: unknown) => {
        if (cause instanceof TooLong) throw cause
        const what = 'The connection to the provider broke off in the middle of its answer.'
        throw new RetryLater(what, { cause, statusCode: 502 })
      })
      return readAnswer(body, (words) => quote(words, api_key))
    } catch (error) {
      throw judge(error, api_key, now())
    }
  })
}

/** Bytes of a provider's answer that are read: a result may have fewer. */
const MAX_ANSWER_BYTES = 4 * 1024 * 1024

/** Characters of a provider's words that an error quotes. */
const MAX_WORDS = 500

class TooLong extends PermanentError {
  constructor() {
    super(`The provider's answer has more than ${MAX_ANSWER_BYTES} bytes.`, { code: 'bad_answer', statusCode: 502 })
  }
}

/** Requests whose answers break off where they are longer than anybody reads. */
function bounded(request: typeof fetch): typeof fetch {
  const asking = async (...args: Parameters<typeof fetch>) => {
    const response = await request(...args)
    if (response.body === null) return response
    let bytes = 0
    const counted = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        bytes += chunk.byteLength
        if (bytes > MAX_ANSWER_BYTES) controller.error(new TooLong())
        else controller.enqueue(chunk)
      },
    })
    return new Response(response.body.pipeThrough(counted), response)
  }
  return Object.assign(asking, request)
}

/**
 * The text that a provider's answer with status 200 holds. Servers that are only nearly compatible, and pages in front
 * of them, answer with all sorts of things; a broken answer may be whole the next time.
 *
 * @throws PermanentError, or RetryLater, with status 502 and the provider's own words.
 */
function readAnswer(body: string, quoted: (words: unknown) => string): string {
  if (body.trim() === '') throw new RetryLater('The provider sent an empty answer.', { statusCode: 502 })
  const wrong = (what: string, code = 'bad_answer') => new PermanentError(what, { code, statusCode: 502 })
  let answer: { choices?: unknown; error?: unknown } | null
  try {
    answer = JSON.parse(body)
  } catch {
    if (!/^\s*[{[]/.test(body)) throw wrong(`The provider sent something else than JSON: ${quoted(body)}`)
    throw new RetryLater(`The provider's answer breaks off, or is no JSON: ${quoted(body)}`, { statusCode: 502 })
  }
  const choice: unknown = Array.isArray(answer?.choices) ? answer.choices[0] : undefined
  if (!isObject(choice) || !isObject(choice['message'])) {
    throw wrong(`The provider sent an answer without a choice: ${quoted(wordsOf(answer?.error) ?? body)}`)
  }
  const { content, refusal } = choice['message']
  if (typeof content === 'string') return content
  const why = refusal ?? choice['finish_reason']
  throw wrong(`The model gave no text${why ? `: ${quoted(why)}` : '.'}`, 'no_answer')
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}

/** Some answer with 200 and an error. */
function wordsOf(error: unknown): unknown {
  return isObject(error) ? (error['message'] ?? error) : error
}

/** What a provider said, in one line, without the key and not longer than anybody reads. */
function quote(words: unknown, apiKey: string): string {
  const text = typeof words === 'string' ? words : (JSON.stringify(words) ?? '')
  const line = withoutKey(text, apiKey).replace(/\s+/g, ' ').trim()
  return line.length > MAX_WORDS ? `${line.slice(0, MAX_WORDS)}…` : line
}

function invalidKey(): PermanentError {
  return new PermanentError('Invalid API key', { code: 'invalid_api_key', statusCode: 400 })
}

/** Says of a provider's error whether waiting helps. Its text is kept, without the key. */
function judge(error: unknown, apiKey: string, now: number): unknown {
  if (!(error instanceof OpenAI.APIError)) return error
  const message = quote(error.message, apiKey)
  const { status } = error
  if (status === undefined || status >= 500 || status === 408 || status === 409) {
    return new RetryLater(message, { afterMs: retryAfter(error, now), statusCode: 502 })
  }
  if (status < 400) {
    const where = quote(error.headers?.get('location') ?? 'nowhere', apiKey)
    const what = `The provider sends requests on (status ${status}) to ${where}: set OPENAI_BASE_URL to where it is.`
    return new PermanentError(what, { code: 'bad_answer', statusCode: 502 })
  }
  if (status === 401) return invalidKey()
  if (status === 429 && error.code !== 'insufficient_quota') {
    return new RetryLater(message, { afterMs: retryAfter(error, now), statusCode: 429 })
  }
  const code = typeof error.code === 'string' ? quote(error.code, apiKey) : ''
  return new PermanentError(message, { code: code || 'provider_refused', statusCode: status })
}

function retryAfter(error: InstanceType<typeof OpenAI.APIError>, now: number): number | null {
  return parseRetryAfter(error.headers?.get('retry-after'), now)
}

/** Providers quote keys, whole or with stars in the middle. */
function withoutKey(message: string, apiKey: string): string {
  return maskSecrets(message, [apiKey]).replace(/\bsk-[\w*.-]+/g, '[sealed]')
}
