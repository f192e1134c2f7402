import { SEALED } from './define.ts'

/** The text with `[sealed]` in the place of each secret, as it is and as JSON, URLs, base64 and hex write it: whoever is told a secret may quote it in any of them. */
export function maskSecrets(text: string, secrets: readonly string[]): string {
  return secrets
    .flatMap(formsOf)
    .toSorted((a, b) => b.length - a.length)
    .reduce((masked, form) => masked.replaceAll(form, SEALED), text)
}

function formsOf(secret: string): string[] {
  const bytes = new TextEncoder().encode(secret)
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
  const json = JSON.stringify(secret).slice(1, -1)
  // A short one would stand in many a text by chance, and be no secret.
  const packed =
    bytes.length < MIN_PACKED ? [] : [hex, hex.toUpperCase(), ...[0, 1, 2].flatMap((shift) => base64At(bytes, shift))]
  return [secret, json, json.replaceAll('/', '\\/'), ...urlForms(secret), ...packed].filter((form) => form !== '')
}

const MIN_PACKED = 6

function urlForms(secret: string): string[] {
  // A lone surrogate has no form in a URL.
  const text = secret.toWellFormed()
  return [encodeURIComponent(text), encodeURI(text), new URLSearchParams([['', text]]).toString().slice(1)]
}

/** In base64 after so many other bytes: the characters that these have no part in. */
function base64At(bytes: Uint8Array, shift: number): string[] {
  const text = btoa(String.fromCharCode(...new Uint8Array(shift), ...bytes)).replace(/=+$/, '')
  const whole = (shift + bytes.length) % 3 === 0
  const inner = text.slice(shift === 0 ? 0 : shift + 1, whole ? undefined : -1)
  return [inner, inner.replaceAll('+', '-').replaceAll('/', '_')]
}
