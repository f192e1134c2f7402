/** What stands in the place of a secret wherever a payload is shown, and in each text that quoted it. */
export const SEALED = '[sealed]'

/**
 * Hides secrets in whatever leaves a run: as they are, and as JSON, URLs, HTML, base64 and hex write them. Whoever is told a secret may quote it in any of these
 * forms.
 */
export interface Mask {
  /** What it hides. */
  readonly secrets: readonly string[]
  text(text: string): string
  /** A text of at most so many characters, for which no more than is needed is looked at. */
  clip(text: string, length: number): string
  /** The same value where it quotes nothing; else a copy, its names, texts and numbers masked. What JSON cannot hold comes back as it is. */
  value(value: unknown): unknown
  /** A value that is JSON already. */
  json(text: string): string
  /** Masks a text that comes in chunks, also where a secret is cut in two: of each chunk gives what may go on. `flush` gives the rest. */
  chunks(): { push(chunk: string): string; flush(): string }
}

/** Of a task without secrets. */
export const NO_MASK: Mask = {
  secrets: [],
  text: (text) => text,
  clip: (text, length) => text.slice(0, length),
  value: (value) => value,
  json: (text) => text,
  chunks: () => ({ push: (chunk) => chunk, flush: () => '' }),
}

export function createMask(secrets: readonly string[]): Mask {
  const known = secrets.filter((secret) => secret !== '')
  if (known.length === 0) return NO_MASK
  // The longest first: of a secret that is a part of another one no rest stays.
  const forms = [...new Set(known.flatMap(formsOf))].filter((form) => form !== '').sort((a, b) => b.length - a.length)
  const reach = forms[0]?.length ?? 0
  const whole = (given: string) => forms.reduce((masked, form) => masked.replaceAll(form, SEALED), given)
  // Who shortens a text may cut a secret: half of one at the end is as good as all of it.
  const cut = (given: string) => {
    const ends = forms.map((form) => [beginningAtEnd(given, form), halfOf(form)] as const)
    const length = Math.max(...ends.map(([end, half]) => (end >= half ? end : 0)))
    return length === 0 ? given : given.slice(0, -length) + SEALED
  }
  const text = (given: string) => cut(whole(given))
  // In JSON a form may be written in yet another way, and what is not well-formed in more than one.
  const halves = new Set(forms.map((form) => escaped(form.slice(0, halfOf(form)))))
  const inJson = forms.every((form) => form.isWellFormed()) ? [...halves] : ['']

  function value(given: unknown): unknown {
    const json = jsonOf(given)
    return json === undefined || !inJson.some((form) => json.includes(form)) ? given : masked(given)
  }

  function masked(given: unknown): unknown {
    if (typeof given === 'string') return text(given)
    if (typeof given === 'number') return forms.includes(String(given)) ? SEALED : given
    if (typeof given !== 'object' || given === null) return given
    if (Array.isArray(given)) return given.map(masked)
    if ('toJSON' in given && typeof given.toJSON === 'function') return masked(given.toJSON())
    return Object.fromEntries(Object.entries(given).map(([name, field]) => [text(name), masked(field)]))
  }

  return {
    ...{ secrets: known, text, value },
    clip: (given, length) => text(given.slice(0, length + reach)).slice(0, length),
    json: (given) => (inJson.some((form) => given.includes(form)) ? JSON.stringify(masked(JSON.parse(given))) : given),
    chunks() {
      let held = ''
      return {
        push(chunk) {
          const all = whole(held + chunk)
          const at = all.length - Math.max(...forms.map((form) => beginningAtEnd(all, form)))
          held = all.slice(at)
          return all.slice(0, at)
        },
        flush: () => cut(held),
      }
    },
  }
}

/** The text with `[sealed]` in the place of each secret, in whatever form it is written. */
export function maskSecrets(text: string, secrets: readonly string[]): string {
  return createMask(secrets).text(text)
}

/** How many characters at the end of a text may be the beginning of a form. */
function beginningAtEnd(text: string, form: string): number {
  const tail = text.slice(Math.max(0, text.length - form.length + 1))
  const first = form[0] ?? ''
  for (let at = tail.indexOf(first); at >= 0; at = tail.indexOf(first, at + 1)) {
    if (form.startsWith(tail.slice(at))) return tail.length - at
  }
  return 0
}

/** As it is and as JSON, and each of these encoded: what is put into a URL or packed is often JSON. */
function formsOf(secret: string): string[] {
  const written = [...new Set([secret, ...jsonForms(secret)])]
  return written.flatMap((text) => [text, ...urlForms(text), ...htmlForms(text), ...packedForms(text)])
}

/** How many characters of a form are enough to know it by. */
function halfOf(form: string): number {
  return Math.max(MIN_PACKED, Math.ceil(form.length / 2))
}

function packedForms(text: string): string[] {
  const bytes = new TextEncoder().encode(text)
  // A short one would stand in many a text by chance, and be no secret.
  if (bytes.length < MIN_PACKED) return []
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
  return [hex, hex.toUpperCase(), ...[0, 1, 2].flatMap((shift) => base64At(bytes, shift))]
}

const MIN_PACKED = 6

/** In JSON, in JSON that is a text in JSON, with slashes escaped, and in ASCII alone. */
function jsonForms(secret: string): string[] {
  const once = escaped(secret)
  const all = [once, escaped(once), asciiOf(once), escaped(asciiOf(once))]
  return [...all, ...all.map((form) => form.replaceAll('/', '\\/'))]
}

function escaped(text: string): string {
  return JSON.stringify(text).slice(1, -1)
}

function asciiOf(text: string): string {
  return text.replace(/[^\0-\x7f]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function urlForms(secret: string): string[] {
  // A lone surrogate has no form in a URL.
  const text = secret.toWellFormed()
  const all = [encodeURIComponent(text), encodeURI(text), new URLSearchParams([['', text]]).toString().slice(1)]
  return [...all, ...all.map((form) => form.replace(/%../g, (code) => code.toLowerCase()))]
}

function htmlForms(secret: string): string[] {
  const text = secret.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
  const quoted = text.replaceAll('"', '&quot;')
  return [text, quoted, ...['&#39;', '&#x27;', '&apos;'].map((quote) => quoted.replaceAll("'", quote))]
}

/** In base64 after so many other bytes: the characters that these have no part in. */
function base64At(bytes: Uint8Array, shift: number): string[] {
  const shifted = new Uint8Array(shift + bytes.length)
  shifted.set(bytes, shift)
  const text = btoa(binaryOf(shifted)).replace(/=+$/, '')
  const whole = (shift + bytes.length) % 3 === 0
  const inner = text.slice(shift === 0 ? 0 : shift + 1, whole ? undefined : -1)
  return [inner, inner.replaceAll('+', '-').replaceAll('/', '_')]
}

/** As many characters as bytes. In parts, as a call takes only so many arguments. */
function binaryOf(bytes: Uint8Array): string {
  let text = ''
  for (let at = 0; at < bytes.length; at += 8_192) text += String.fromCharCode(...bytes.subarray(at, at + 8_192))
  return text
}

function jsonOf(value: unknown): string | undefined {
  try {
    return JSON.stringify(value)
  } catch {
    return undefined
  }
}
