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
    const client = new OpenAI({
      apiKey: api_key,
      baseURL: options.baseUrl,
      // Waiting is the queue's business.
      maxRetries: 0,
      timeout: chat.timeoutMs,
      // With OPENAI_LOG set it would print what the provider answers, which may quote the key.
      logLevel: 'off',
      ...(options.fetch && { fetch: options.fetch }),
    })
    try {
      const completion = await client.chat.completions.create(
        { model: model ?? options.model, messages: [{ role: 'user', content: question }] },
        { signal: ctx.signal, idempotencyKey: ctx.idempotencyKey },
      )
      const text = completion.choices[0]?.message.content
      if (typeof text !== 'string')
        throw new PermanentError('The model gave no text.', { code: 'no_answer', statusCode: 502 })
      return text
    } catch (error) {
      throw judge(error, api_key, now())
    }
  })
}

/** Says of a provider's error whether waiting helps. Its text is kept, without the key. */
function judge(error: unknown, apiKey: string, now: number): unknown {
  if (!(error instanceof OpenAI.APIError)) return error
  const message = withoutKey(error.message, apiKey)
  if (error.status === undefined || error.status >= 500 || error.status === 408 || error.status === 409) {
    return new RetryLater(message, { afterMs: retryAfter(error, now), statusCode: 502 })
  }
  if (error.status === 401) return new PermanentError('Invalid API key', { code: 'invalid_api_key', statusCode: 400 })
  if (error.status === 429 && error.code !== 'insufficient_quota') {
    return new RetryLater(message, { afterMs: retryAfter(error, now), statusCode: 429 })
  }
  return new PermanentError(message, { code: error.code ?? 'provider_refused', statusCode: error.status })
}

function retryAfter(error: InstanceType<typeof OpenAI.APIError>, now: number): number | null {
  return parseRetryAfter(error.headers?.get('retry-after'), now)
}

/** Providers quote keys, whole or with stars in the middle. */
function withoutKey(message: string, apiKey: string): string {
  return maskSecrets(message, [apiKey]).replace(/\bsk-[\w*.-]+/g, '[sealed]')
}
