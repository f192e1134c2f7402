import { PermanentError } from '#shared/task/errors.ts'

/** Results and payloads of more bytes fail their task: they would not pass the limits of stores and of readers. */
const MAX_TEXT_BYTES = 1_048_576

/** @throws PermanentError when the text is longer than `MAX_TEXT_BYTES`; `what` says whose it is. */
export function limitSize(text: string, what: () => string): void {
  if (text.length * 3 <= MAX_TEXT_BYTES || new TextEncoder().encode(text).length <= MAX_TEXT_BYTES) return
  const message = `${what()} is larger than ${MAX_TEXT_BYTES} bytes: store it elsewhere, and hand on where it is.`
  throw new PermanentError(message, { code: 'too_large' })
}
