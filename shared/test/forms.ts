/** The forms in which a secret would be readable, by what they are called. */
export type Forms = Readonly<Record<string, readonly string[]>>

/** Shorter pieces might stand in a file by chance. */
const MIN_PIECE = 8

/**
 * What to look for, to find a secret wherever and however it was written. JSON escapes quotes and backslashes, and again for JSON in JSON: the
 * pieces between them stand in all of these as they are, so they are what is looked for, in each form.
 *
 * @throws TypeError when no piece is long enough to be looked for.
 */
export function formsOf(secret: string): Forms {
  const pieces = secret.split(/["\\]/).filter((piece) => piece.length >= MIN_PIECE)
  if (pieces.length === 0) throw new TypeError(`A secret to look for needs ${MIN_PIECE} characters without a quote.`)
  const each = (form: (piece: string) => readonly string[]) => [...new Set(pieces.flatMap(form))]
  return {
    clear: pieces,
    base64: each((piece) => [0, 1, 2].map((shift) => base64At(piece, shift))),
    base64url: each((piece) => [0, 1, 2].map((shift) => urlSafe(base64At(piece, shift)))),
    hex: each((piece) => [hexOf(piece), hexOf(piece).toUpperCase()]),
    URL: each((piece) => [encodeURIComponent(piece), encodeURIComponent(piece).replace(/%../g, lowerCase)]),
  }
}

/** The places in which a form was found, with what the forms found there are called; a place without any is left out. */
export function findForms(
  places: Readonly<Record<string, string | Uint8Array>>,
  forms: Forms,
): Record<string, string[]> {
  const found: Record<string, string[]> = {}
  for (const [place, content] of Object.entries(places)) {
    const bytes = Buffer.from(content)
    const names = Object.keys(forms).filter((name) => forms[name]?.some((form) => bytes.includes(form)))
    if (names.length > 0) found[place] = names
  }
  return found
}

/** In base64 after so many other bytes: the characters that nothing else has a part in. */
function base64At(text: string, shift: number): string {
  const bytes = Buffer.from('x'.repeat(shift) + text)
  const packed = bytes.toString('base64').replaceAll('=', '')
  return packed.slice(shift === 0 ? 0 : shift + 1, bytes.length % 3 === 0 ? undefined : -1)
}

function urlSafe(base64: string): string {
  return base64.replaceAll('+', '-').replaceAll('/', '_')
}

function hexOf(text: string): string {
  return Buffer.from(text).toString('hex')
}

function lowerCase(text: string): string {
  return text.toLowerCase()
}
