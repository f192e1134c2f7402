import * as z from 'zod'
import { InvalidInput, type Issue } from './errors.ts'
import { NotJson, toJson } from './json.ts'
import { DEFAULT_RETRY, type RetryRules } from './retry.ts'
import { type JsonRules, jsonRulesOf } from './schema.ts'

/** What others need to know of a kind: its name, the shape of payload and result, and its rules. Never its handler. */
export interface Contract<Input extends z.ZodType = z.ZodType, Output extends z.ZodType = z.ZodType> {
  readonly kind: string
  readonly description: string
  readonly input: Input
  readonly output: Output
  readonly retry: RetryRules
  /** Milliseconds that an attempt may run at a stretch before it is aborted and counts as failed. Waiting for children or in a sleep is not running. */
  readonly timeoutMs: number
  /** Runs at once in one worker process, when nothing else is set. */
  readonly concurrency: number
  /** Paths of the payload's secret fields, from the schema: `[['api_key']]`. */
  readonly secrets: readonly (readonly string[])[]
  /** How payload and result are written as JSON. */
  readonly json: { readonly input: JsonRules; readonly output: JsonRules }
}

export type PayloadOf<C extends Contract> = z.output<C['input']>
/** What a caller writes: fields with a default may be left out. */
export type CallOf<C extends Contract> = z.input<C['input']>
export type ResultOf<C extends Contract> = z.output<C['output']>

const KIND = /^[a-z][a-z0-9_-]{0,63}$/

/**
 * Defines a kind of task. The contract gives the HTTP route and its validation, the types of worker and callers, and the redaction of secrets.
 *
 * @throws TypeError when the kind's name is not lower-case letters, digits, `-` and `_`, starting with a letter (it becomes a URL path and a key); when a
 * limit is not a whole number in its range; when a schema gives what JSON cannot hold (Date, Map, BigInt …), naming the field.
 * @example
 * ```ts
 * export const sum = defineTask({
 *   kind: 'sum',
 *   description: 'Adds two numbers.',
 *   input: z.object({ num1: z.number(), num2: z.number() }),
 *   output: z.number(),
 * })
 * ```
 */
export function defineTask<Input extends z.ZodType, Output extends z.ZodType>(definition: {
  kind: string
  description: string
  input: Input
  output: Output
  retry?: Partial<RetryRules>
  timeoutMs?: number
  concurrency?: number
}): Contract<Input, Output> {
  const { kind, input, output } = definition
  if (!KIND.test(kind)) throw new TypeError(`"${kind}" cannot name a kind: use ${KIND}`)
  const contract = {
    timeoutMs: 60_000,
    concurrency: 100,
    ...definition,
    retry: { ...DEFAULT_RETRY, ...definition.retry },
    secrets: secretPaths(input),
    json: { input: jsonRulesOf(input, `${kind}: input`), output: jsonRulesOf(output, `${kind}: output`) },
  }
  requireWhole(`${kind}: timeoutMs`, contract.timeoutMs, 1)
  requireWhole(`${kind}: concurrency`, contract.concurrency, 1)
  requireWhole(`${kind}: retry.maxAttempts`, contract.retry.maxAttempts, 1)
  requireWhole(`${kind}: retry.backoffMs`, contract.retry.backoffMs, 0)
  requireWhole(`${kind}: retry.maxBackoffMs`, contract.retry.maxBackoffMs, 0)
  return contract
}

function requireWhole(name: string, value: unknown, least: number): void {
  if (Number.isSafeInteger(value) && Number(value) >= least) return
  throw new TypeError(`${name} must be a whole number of at least ${least}, and is ${String(value)}.`)
}

/** Marks a field as secret: it is sealed before it reaches the store and never shown again. */
export function secret<S extends z.ZodType>(schema: S): S {
  return schema.meta({ secret: true, writeOnly: true, format: 'password' })
}

function secretPaths(schema: z.ZodType, above: readonly z.ZodType[] = []): string[][] {
  // A schema may contain itself.
  if (above.includes(schema)) return []
  const inside = [...above, schema]
  if (schema.meta()?.['secret'] === true) return [[]]
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodNullable || schema instanceof z.ZodDefault) {
    return secretPaths(schema.unwrap() as z.ZodType, inside)
  }
  if (!(schema instanceof z.ZodObject)) return []
  return Object.entries(schema.shape).flatMap(([name, field]) =>
    secretPaths(field as z.ZodType, inside).map((path) => [name, ...path]),
  )
}

/**
 * Validates a payload against its contract and returns it as it is stored, and as the handler sees it: unknown fields dropped, defaults filled in, transforms
 * done. It is parsed once, where it comes in: what is parsed again may become something else.
 *
 * @throws InvalidInput naming every field that does not fit, with paths from `payload`. No value of the payload is in it.
 */
export function parsePayload<C extends Contract>(contract: C, payload: unknown): PayloadOf<C> {
  const parsed = contract.input.safeParse(payload, { error: describe })
  if (!parsed.success) {
    throw new InvalidInput(`The payload does not fit ${contract.kind}.`, issuesOf(parsed.error, 'payload'))
  }
  if (!contract.json.input.isPlain && parsed.data !== undefined) payloadJson(contract, parsed.data)
  return parsed.data as PayloadOf<C>
}

/**
 * A payload as JSON.
 *
 * @throws InvalidInput naming the part that JSON cannot hold.
 */
export function payloadJson(contract: Contract, payload: unknown): string {
  try {
    return toJson(payload === undefined ? null : payload, () => 'payload')
  } catch (error) {
    if (!(error instanceof NotJson)) throw error
    const message = `JSON cannot hold ${error.what}`
    throw new InvalidInput(`The payload does not fit ${contract.kind}.`, [{ path: error.path, message }])
  }
}

/** What was stored, as its schema gives it. */
export function fromStored({ nullIsUndefined }: JsonRules, value: unknown): unknown {
  return nullIsUndefined && value === null ? undefined : value
}

function describe(issue: z.core.$ZodRawIssue): string | undefined {
  return issue.code === 'invalid_type' && issue.input === undefined ? `Required: ${issue.expected}` : undefined
}

/** The issues of a zod error in the shape of the HTTP contract. */
export function issuesOf(error: z.core.$ZodError, at: string): Issue[] {
  return error.issues.map((issue) => ({
    path: [at, ...issue.path.map(String)].join('.'),
    message: issue.message,
  }))
}

/** What stands in the place of a secret wherever a payload is shown. */
export const SEALED = '[sealed]'

/** A copy of the payload with each secret field replaced by what `replace` makes of it; absent fields stay absent. */
export async function mapSecrets(
  contract: Contract,
  payload: unknown,
  replace: (value: unknown) => unknown,
): Promise<unknown> {
  let copy = payload
  for (const path of contract.secrets) copy = await replaceAt(copy, path, replace)
  return copy
}

async function replaceAt(
  value: unknown,
  path: readonly string[],
  replace: (value: unknown) => unknown,
): Promise<unknown> {
  const [name, ...rest] = path
  if (name === undefined) return replace(value)
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return value
  const field = (value as Record<string, unknown>)[name]
  if (field === undefined || field === null) return value
  return { ...value, [name]: await replaceAt(field, rest, replace) }
}

/** The payload as it may be shown: `"[sealed]"` in the place of every secret. */
export function redact(contract: Contract, payload: unknown): unknown {
  if (contract.secrets.length === 0) return payload
  return contract.secrets.reduce<unknown>((copy, path) => redactAt(copy, path), payload)
}

function redactAt(value: unknown, path: readonly string[]): unknown {
  const [name, ...rest] = path
  if (name === undefined) return SEALED
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return value
  return { ...value, [name]: redactAt((value as Record<string, unknown>)[name], rest) }
}

/** The secret texts in a payload, so that they can be kept out of messages. */
export function secretsIn(contract: Contract, payload: unknown): string[] {
  return contract.secrets.flatMap((path) => {
    const value = path.reduce<unknown>(
      (at, name) => (typeof at === 'object' && at !== null ? Reflect.get(at, name) : undefined),
      payload,
    )
    return typeof value === 'string' && value !== '' ? [value] : []
  })
}
