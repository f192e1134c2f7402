/** What of a value has a form in JSON. Payloads, results and results of steps are written by `toJson` alone, so that nothing is lost without a word. */

/** A part of a value that JSON cannot hold: where it is, and what it is. */
export class NotJson extends TypeError {
  readonly path: string
  readonly what: string
  constructor(path: string, what: string) {
    super(`${path} is ${what}, which JSON cannot hold.`)
    this.name = 'NotJson'
    this.path = path
    this.what = what
  }
}

/**
 * The value as JSON. Properties that are undefined are left out, and are null in a list; what has a `toJSON` (a Date) is written by it.
 *
 * @param at Names the value in the error.
 * @throws NotJson for functions, symbols, BigInts, numbers that are not finite, undefined by itself, cycles, and objects that JSON would empty
 * (Map, Set, Error, Promise).
 */
export function toJson(value: unknown, at: () => string): string {
  let text: string | undefined
  try {
    text = JSON.stringify(value)
  } catch {
    // A cycle or a BigInt: the walk below names it, or it is nested too deeply for any walk.
  }
  try {
    check(value, '', text === undefined ? new Set() : null)
  } catch (error) {
    if (error instanceof RangeError) throw new NotJson(at(), 'nested too deeply')
    if (error instanceof NotJson) throw new NotJson(at() + error.path, error.what)
    throw error
  }
  if (text === undefined) throw new NotJson(at(), 'nothing')
  return text
}

function check(value: unknown, path: string, above: Set<object> | null): void {
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return
  if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw new NotJson(path, String(value))
    return
  }
  if (typeof value !== 'object')
    throw new NotJson(path, typeof value === 'undefined' ? 'undefined' : `a ${typeof value}`)
  if (above?.has(value)) throw new NotJson(path, 'part of itself')
  if ('toJSON' in value && typeof value.toJSON === 'function') {
    check(value.toJSON(), path, above)
    return
  }
  above?.add(value)
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) if (value[i] !== undefined) check(value[i], `${path}.${i}`, above)
  } else {
    const names = Object.keys(value)
    if (names.length === 0 && !isPlain(value)) throw new NotJson(path, `a ${value.constructor?.name ?? 'class'}`)
    for (const name of names) {
      const field: unknown = (value as Record<string, unknown>)[name]
      if (field !== undefined) check(field, `${path}.${name}`, above)
    }
  }
  above?.delete(value)
}

function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || prototype === Object.prototype
}

/** A copy of a value that came from JSON. */
export function copyJson<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(copyJson) as T
  const copy: Record<string, unknown> = {}
  for (const name of Object.keys(value)) {
    const field = copyJson((value as Record<string, unknown>)[name])
    // Assigned, this name would set the prototype.
    if (name === '__proto__')
      Object.defineProperty(copy, name, { value: field, enumerable: true, configurable: true, writable: true })
    else copy[name] = field
  }
  return copy as T
}

/** The text of a value as JSON, its names in the order of the alphabet: equal for values that differ in nothing else. */
export function canonicalJson(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null'
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  const fields = Object.entries(value)
    .filter(([, field]) => field !== undefined)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, field]) => `${JSON.stringify(name)}:${canonicalJson(field)}`)
  return `{${fields.join(',')}}`
}

/** A short name for a text: 53 bits of cyrb53, in base 36. Not for secrets. */
export function digestOf(text: string): string {
  let [a, b] = [0xdeadbeef, 0x41c6ce57]
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i)
    a = Math.imul(a ^ char, 2654435761)
    b = Math.imul(b ^ char, 1597334677)
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909)
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909)
  return (4294967296 * (2097151 & b) + (a >>> 0)).toString(36)
}

const encoder = new TextEncoder()

/** Bytes of a text in UTF-8, as it is stored and sent. */
export function bytesOf(text: string): number {
  return encoder.encode(text).length
}
