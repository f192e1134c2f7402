/** Where a kind's schema has secrets. Known for certain when the kind is defined, or the kind is refused: a secret that is overlooked would lie in the store in clear. */
import * as z from 'zod'
import { definitionOf } from './schema.ts'

/** One step of the way to a secret: a field's name, an item's number, or every value from that number on (of a record all). */
export type Step = string | number | { readonly from: number }

/** The way from the payload to a secret. */
export type Place = readonly Step[]

/** What is built deeper than this builds itself anew each time it is looked at. */
const MAX_DEPTH = 100

/** Marks a field as secret: it is sealed before it reaches the store and never shown again. */
export function secret<S extends z.ZodType>(schema: S): S {
  // In the definition too: `.strict()`, `.exclude()`, `.register()` and others forget what is noted elsewhere.
  const definition = z.core.util.mergeDefs(schema._zod.def as never, { secret: true } as never) as never
  const marked = z.core.clone(schema, definition, { parent: true })
  return marked.meta({ secret: true, writeOnly: true, format: 'password' })
}

/**
 * Every place that is marked `secret()` in a payload's schema.
 *
 * @param at Names the schema in the error.
 * @throws TypeError naming the field, and what to write instead, when a secret is no text, or lies where what the schema gives may hold its text elsewhere.
 */
export function secretPlaces(schema: z.ZodType, at: string): Place[] {
  requireSound(schema, at)
  // Several parts of a union may name the same place.
  return [...new Map(placesIn(schema, at, []).map((place) => [JSON.stringify(place), place])).values()]
}

/** @throws TypeError when something in a result's schema is marked: nothing seals a result. */
export function refuseSecrets(schema: z.ZodType, at: string): void {
  requireSound(schema, at)
  const found = findSecret(schema, at)
  if (found === null) return
  throw new TypeError(
    `${found} is marked secret, and results are not sealed: leave it out, or store it elsewhere and give where it is.`,
  )
}

/** A place as a person writes it: `keys.*.value`. */
export function nameOf(place: Place): string {
  return place.map((step) => (typeof step === 'object' ? '*' : step)).join('.')
}

function isSecret(schema: z.ZodType): boolean {
  return definitionOf(schema).secret === true || z.globalRegistry.get(schema)?.['secret'] === true
}

function placesIn(schema: z.ZodType, at: string, above: readonly z.ZodType[]): Place[] {
  if (isSecret(schema)) {
    requireText(schema, at)
    return [[]]
  }
  if (findSecret(schema, at) === null) return []
  if (above.includes(schema)) {
    throw refusal(schema, at, 'in a schema that contains itself: keep secrets outside of what repeats')
  }
  const inside = [...above, schema]
  const within = (part: z.ZodType, name: string, step: Step) =>
    placesIn(part, `${at}.${name}`, inside).map((place) => [step, ...place])
  const places = partsWithPlaces(schema, at, within, (part) => placesIn(part, at, inside))
  for (const place of places) requireStill(schema, place, at)
  const others = Object.entries(definitionOf(schema)).filter(([name]) => !KNOWN.has(name))
  if (findSecret(Object.fromEntries(others), at) !== null)
    throw refusal(schema, at, 'in a check: mark the field itself')
  return places
}

/** Parts of a definition in which places are looked for. */
const KNOWN = new Set(
  'shape catchall element items rest keyType valueType options left right innerType getter'.split(' '),
)

/** Of the types that keep what they are given where it was. @throws for all others, and for those that are not known. */
function partsWithPlaces(
  schema: z.ZodType,
  at: string,
  within: (part: z.ZodType, name: string, step: Step) => Place[],
  same: (part: z.ZodType) => Place[],
): Place[] {
  const def = definitionOf(schema)
  switch (def.type) {
    case 'object':
      if (def.catchall && findSecret(def.catchall, at)) {
        throw refusal(schema, at, 'in a catchall: name the field, or use z.record()')
      }
      return Object.entries(def.shape ?? {}).flatMap(([name, field]) => within(field, name, name))
    case 'array':
      return def.element ? within(def.element, '*', { from: 0 }) : []
    case 'tuple': {
      const { items = [], rest } = def
      const places = items.flatMap((item, i) => within(item, String(i), i))
      return rest ? [...places, ...within(rest, '*', { from: items.length })] : places
    }
    case 'record':
      if (def.keyType && findSecret(def.keyType, at)) {
        throw refusal(schema, at, 'as the name of a field: make it a value')
      }
      return def.valueType ? within(def.valueType, '*', { from: 0 }) : []
    // What is secret in one of them is sealed whichever it is.
    case 'union':
      return (def.options ?? []).flatMap(same)
    case 'intersection':
      return [def.left, def.right].flatMap((part) => (part ? same(part) : []))
    case 'lazy':
      return def.getter ? same(def.getter()) : []
    case 'optional':
    case 'nullable':
    case 'nonoptional':
    case 'default':
    case 'prefault':
    case 'readonly':
      return def.innerType ? same(def.innerType) : []
    default:
      throw refusal(schema, at, INSTEAD[def.type] ?? `in a schema of type "${def.type}", which is not known here`)
  }
}

const INSTEAD: Record<string, string> = {
  pipe: 'inside of a transform, preprocess, codec or pipe, which may carry it anywhere: put secret() around all of it, as in secret(z.string().transform(…)), or transform in the handler',
  transform: 'inside of a transform, which may carry it anywhere: transform in the handler',
  catch: 'inside of a catch, which may put anything in its place: write secret(z.string().catch(…))',
  template_literal: 'as a part of a text: write secret(z.templateLiteral(…))',
  map: 'in a Map, which has no form in JSON: use z.record()',
  set: 'in a Set, which has no form in JSON: use z.array()',
  success: 'inside of z.success(), which does not keep it: leave the mark out',
}

function refusal(schema: z.ZodType, at: string, why: string): TypeError {
  return new TypeError(`${findSecret(schema, at) ?? at} cannot be sealed: it is marked secret ${why}.`)
}

/** @throws when something on the way to a place (in a union or an intersection another part than the one that is marked) may carry its text elsewhere. */
function requireStill(schema: z.ZodType, [step, ...rest]: Place, at: string): void {
  if (step === undefined || isSecret(schema)) return
  const def = definitionOf(schema)
  const carried = (how: string, instead: string) =>
    new TypeError(
      `${at}.${nameOf([step, ...rest])} cannot be sealed: it is marked secret, and ${at} has ${how}, which may carry it anywhere: ${instead}.`,
    )
  if (def.checks?.some((check) => check._zod.def.check === 'overwrite')) {
    throw carried('an overwrite()', 'overwrite the text itself')
  }
  if (CARRYING.has(def.type)) throw carried(`a ${def.type}`, 'do that in the handler')
  const name = typeof step === 'object' ? '*' : String(step)
  const into = (part: z.ZodType | null | undefined) => part && requireStill(part, rest, `${at}.${name}`)
  const same = (part: z.ZodType | undefined) => part && requireStill(part, [step, ...rest], at)
  if (typeof step === 'string') into(Object.hasOwn(def.shape ?? {}, step) ? def.shape?.[step] : def.catchall)
  else into(def.element)
  into(def.valueType)
  if (typeof step === 'number') into(def.items?.[step] ?? def.rest)
  if (typeof step === 'object') for (const item of [...(def.items ?? []), def.rest]) into(item)
  for (const part of [...(def.options ?? []), def.left, def.right, def.innerType, def.getter?.()]) same(part)
}

const CARRYING = new Set(['pipe', 'transform', 'catch'])

/** Only text can be found again in what a task says, so nothing else may be a secret. */
function requireText(schema: z.ZodType, at: string): void {
  if (mayBeText(schema, [])) return
  const what = `${at} is marked secret and is no text, and only text can be kept out of results and errors`
  throw new TypeError(`${what}: use z.string(), or mark each text in it.`)
}

/** Whether a schema gives text or nothing, as far as its types tell; what is not known is looked at in each payload. */
function mayBeText(schema: z.ZodType, above: readonly z.ZodType[]): boolean {
  if (above.includes(schema) || above.length > MAX_DEPTH) return false
  const def = definitionOf(schema)
  const every = (parts: readonly (z.ZodType | undefined)[]) =>
    parts.every((part) => part !== undefined && mayBeText(part, [...above, schema]))
  switch (def.type) {
    case 'string':
    case 'template_literal':
    case 'null':
    case 'undefined':
    case 'any':
    case 'unknown':
    case 'custom':
    case 'transform':
      return true
    case 'enum':
      return Object.values(def.entries ?? {}).every((value) => typeof value === 'string')
    case 'literal':
      return (def.values ?? []).every((value) => typeof value === 'string' || value == null)
    case 'union':
      return every(def.options ?? [])
    case 'intersection':
      return every([def.left, def.right])
    case 'pipe':
      return every([def.out])
    case 'lazy':
      return every([def.getter?.()])
    default:
      return every([def.innerType])
  }
}

/** Where a schema has a secret, by name; null where it has none. Looks into whatever a definition holds, so that a type that is not known hides nothing. */
function findSecret(schema: object, at: string): string | null {
  let found: string | null = null
  look(schema, at, (one, where) => {
    if (isSecret(one)) found ??= where
  })
  return found
}

/** @throws TypeError when a function in the schema is async, as far as that shows, and for a schema without an end. */
function requireSound(schema: z.ZodType, at: string): void {
  look(schema, at, (one, where) => {
    const def = definitionOf(one)
    const functions = [def, ...(def.checks ?? []).map((check) => check._zod.def)].flatMap((part) => Object.values(part))
    if (!functions.some((value) => typeof value === 'function' && value.constructor.name === 'AsyncFunction')) return
    throw new TypeError(
      `${where} has an async refinement or transform, and payloads and results are parsed at once: do it in the handler.`,
    )
  })
}

/** Visits a schema and all that are in it, each once. */
function look(schema: object, at: string, visit: (schema: z.ZodType, at: string) => void): void {
  const seen = new Set<unknown>()
  const into = (value: unknown, where: string, depth: number): void => {
    if (typeof value !== 'object' || value === null || seen.has(value)) return
    if (depth > MAX_DEPTH) {
      throw new TypeError(`${at} is nested more than ${MAX_DEPTH} deep, or builds itself anew: define its parts once.`)
    }
    seen.add(value)
    const isPart = '_zod' in value
    const isSchema = isPart && isZodType(value)
    if (isSchema) visit(value, where)
    const def = isPart ? (value as z.ZodType)._zod.def : value
    for (const [name, part] of Object.entries(def)) {
      if (isSchema && name === 'shape') {
        for (const [field, one] of Object.entries(part as object)) into(one, `${where}.${field}`, depth + 1)
      } else if (isSchema && name === 'getter' && typeof part === 'function') into(part(), where, depth + 1)
      else into(part, isSchema ? where + (BELOW[name] ?? '') : where, depth + 1)
    }
  }
  into(schema, at, 0)
}

/** How errors name what is in these parts of a definition. */
const BELOW: Record<string, string> = { element: '.*', rest: '.*', valueType: '.*', catchall: '.*' }

function isZodType(value: object): value is z.ZodType {
  return typeof Reflect.get(Reflect.get(value, '_zod') as object, 'parse') === 'function'
}
