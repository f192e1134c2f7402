import { PermanentError } from '#shared/task/errors.ts'
import { isLargerThan, MAX_TEXT_BYTES } from '#shared/task/limits.ts'

/** @throws PermanentError when the text is longer than {@link MAX_TEXT_BYTES}; `what` says whose it is. */
export function limitSize(text: string, what: () => string): void {
  if (!isLargerThan(MAX_TEXT_BYTES, text)) return
  const message = `${what()} is larger than ${MAX_TEXT_BYTES} bytes: store it elsewhere, and hand on where it is.`
  throw new PermanentError(message, { code: 'too_large' })
}
