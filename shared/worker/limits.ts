import { PermanentError } from '#shared/task/errors.ts'
import { isLargerThan, MAX_TEXT_BYTES } from '#shared/task/limits.ts'

/**
 * Results, payloads and chunks that have more bytes as JSON fail their task: they would not pass the limits of stores and of readers.
 *
 * @throws PermanentError when JSON has more than {@link MAX_TEXT_BYTES}; `what` says whose it is.
 */
export function limitSize(json: string, what: () => string): void {
  if (!isLargerThan(MAX_TEXT_BYTES, json)) return
  const message = `${what()} is larger than ${MAX_TEXT_BYTES} bytes of JSON: store it elsewhere, and hand on where it is.`
  throw new PermanentError(message, { code: 'too_large' })
}

/** The same for a text that is stored and sent as a JSON string, where a control character is six bytes. */
export function limitText(text: string, what: () => string): void {
  if (text.length * 6 + 2 > MAX_TEXT_BYTES) limitSize(JSON.stringify(text), what)
}
