/** What a kind's schemas say of the JSON that is stored: whether there is any, and what must be looked at when values are written. */
import type * as z from 'zod'

export interface JsonRules {
  /** Whatever the schema gives is JSON as it is, so that nobody need look. */
  readonly isPlain: boolean
  /** A null that was stored stands for undefined, which JSON cannot hold. */
  readonly nullIsUndefined: boolean
}

/** Types without a form in JSON, and what to write instead. */
const REFUSED: Record<string, string> = {
  bigint: 'a BigInt has no form in JSON: use a string, or z.int()',
  date: 'a Date would come out of the store as text: use z.iso.datetime()',
  map: 'a Map has no form in JSON: use z.record()',
  set: 'a Set has no form in JSON: use z.array()',
  symbol: 'a symbol has no form in JSON',
  nan: 'NaN has no form in JSON: use z.null()',
  function: 'a function has no form in JSON',
  promise: 'a promise has no form in JSON',
  file: 'a file has no form in JSON: store it elsewhere, and hand on where it is',
}

const PLAIN = new Set(['string', 'number', 'int', 'boolean', 'null', 'enum', 'template_literal', 'never'])

/**
 * Looks at what a schema gives (behind transforms, nobody can: those values are looked at when they are written).
 *
 * @param at Names the schema in the error: `input` or `output`.
 * @throws TypeError naming the field that has no form in JSON, and what to use instead.
 */
export function jsonRulesOf(schema: z.ZodType, at: string): JsonRules {
  const isPlain = walk(schema, at, new Set())
  return { isPlain, nullIsUndefined: mayBeUndefined(schema) && !mayBeNull(schema) }
}

/** The parts of zod's definitions that are read. */
export interface Definition {
  type: string
  shape?: Record<string, z.ZodType>
  catchall?: z.ZodType
  element?: z.ZodType
  items?: z.ZodType[]
  rest?: z.ZodType | null
  options?: z.ZodType[]
  left?: z.ZodType
  right?: z.ZodType
  keyType?: z.ZodType
  valueType?: z.ZodType
  innerType?: z.ZodType
  in?: z.ZodType
  out?: z.ZodType
  values?: unknown[]
  entries?: Record<string, unknown>
  getter?: () => z.ZodType
  checks?: { _zod: { def: { check: string } } }[]
  /** Ours: see `secret()`. */
  secret?: boolean
}

export function definitionOf(schema: z.ZodType): Definition {
  return (schema as unknown as { _zod: { def: Definition } })._zod.def
}

function walk(schema: z.ZodType, at: string, above: Set<z.ZodType>): boolean {
  if (above.has(schema)) return true
  above.add(schema)
  const def = definitionOf(schema)
  const refusal = REFUSED[def.type]
  if (refusal !== undefined) throw new TypeError(`${at} cannot be stored: ${refusal}.`)
  const all = (parts: [z.ZodType, string][]) => parts.map(([part, where]) => walk(part, where, above)).every(Boolean)
  const element = (part: z.ZodType, where: string): [z.ZodType, string] => {
    if (mayBeUndefined(part))
      throw new TypeError(`${where} cannot be stored: JSON has no undefined in a list. Use z.nullable().`)
    return [part, where]
  }
  switch (def.type) {
    case 'object': {
      const fields = Object.entries(def.shape ?? {}).map(([name, field]): [z.ZodType, string] => [
        field,
        `${at}.${name}`,
      ])
      const others = def.catchall && definitionOf(def.catchall).type !== 'never' ? [def.catchall] : []
      return all([...fields, ...others.map((part): [z.ZodType, string] => [part, `${at}.*`])])
    }
    case 'array':
      return def.element ? all([element(def.element, `${at}[]`)]) : false
    case 'tuple': {
      const parts = (def.items ?? []).map((part, i) => element(part, `${at}.${i}`))
      return all(def.rest ? [...parts, element(def.rest, `${at}[]`)] : parts)
    }
    case 'record':
      return def.valueType ? all([[def.valueType, `${at}.*`]]) : false
    case 'union':
      return all((def.options ?? []).map((part) => [part, at]))
    case 'intersection':
      return all([def.left, def.right].flatMap((part) => (part ? [[part, at] as [z.ZodType, string]] : [])))
    case 'literal':
      for (const value of def.values ?? [])
        if (typeof value === 'bigint') throw new TypeError(`${at} cannot be stored: ${REFUSED['bigint']}.`)
      return true
    case 'undefined':
    case 'void':
      return true
    case 'lazy':
      return def.getter ? walk(def.getter(), at, above) : false
    case 'pipe':
      return def.out ? walk(def.out, at, above) : false
    default:
      return def.innerType ? walk(def.innerType, at, above) : PLAIN.has(def.type)
  }
}

/** Whether a schema gives undefined, as far as its types tell. */
function mayBeUndefined(schema: z.ZodType): boolean {
  const def = definitionOf(schema)
  switch (def.type) {
    case 'undefined':
    case 'void':
    case 'optional':
      return true
    case 'literal':
      return (def.values ?? []).includes(undefined)
    case 'union':
      return (def.options ?? []).some(mayBeUndefined)
    case 'pipe':
      return def.out ? mayBeUndefined(def.out) : false
    case 'nullable':
    case 'readonly':
    case 'catch':
      return def.innerType ? mayBeUndefined(def.innerType) : false
    default:
      return false
  }
}

function mayBeNull(schema: z.ZodType): boolean {
  const def = definitionOf(schema)
  switch (def.type) {
    case 'null':
    case 'nullable':
    case 'any':
    case 'unknown':
    case 'custom':
    case 'transform':
      return true
    case 'literal':
      return (def.values ?? []).includes(null)
    case 'union':
      return (def.options ?? []).some(mayBeNull)
    case 'pipe':
      return def.out ? mayBeNull(def.out) : true
    default:
      return def.innerType ? mayBeNull(def.innerType) : false
  }
}

/** Whether a schema takes objects that have a field of this name by its own word: then an object with one may be the value itself. */
export function mayHaveField(schema: z.ZodType, name: string): boolean {
  const def = definitionOf(schema)
  switch (def.type) {
    case 'object':
      return Object.hasOwn(def.shape ?? {}, name)
    case 'record':
      return true
    case 'union':
      return (def.options ?? []).some((part) => mayHaveField(part, name))
    case 'intersection':
      return [def.left, def.right].some((part) => part !== undefined && mayHaveField(part, name))
    case 'pipe':
      // `z.preprocess` begins with a transform, which takes anything.
      return [def.in, def.out].some((part) => part !== undefined && mayHaveField(part, name))
    case 'lazy':
      return def.getter ? mayHaveField(def.getter(), name) : false
    default:
      return def.innerType ? mayHaveField(def.innerType, name) : false
  }
}
