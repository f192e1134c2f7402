import * as z from 'zod'
import { InvalidInput, type Issue, PermanentError } from './errors.ts'
import { NotJson, toJson } from './json.ts'
import { createMask, type Mask, SEALED } from './mask.ts'
import { DEFAULT_RETRY, type RetryRules } from './retry.ts'
import { type JsonRules, jsonRulesOf } from './schema.ts'
import { type Place, refuseSecrets, type Step, secretPlaces } from './secret.ts'

export { secret } from './secret.ts'

/** What every sealed text begins with; the rest is a compact JWE. */
export const SEALED_PREFIX = 'sealed:'

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
  /** Where the payload's secrets are, from the schema: `[['api_key']]`. */
  readonly secrets: readonly Place[]
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
 * limit is not a whole number in its range; when a schema gives what JSON cannot hold (Date, Map, BigInt …), has an async refinement, or has a secret that cannot be
 * sealed, naming the field and what to write instead.
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
  refuseSecrets(output, `${kind}: output`)
  const contract = {
    timeoutMs: 60_000,
    concurrency: 100,
    ...definition,
    retry: { ...DEFAULT_RETRY, ...definition.retry },
    secrets: secretPlaces(input, `${kind}: input`),
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

/**
 * Validates a payload against its contract and returns it as it is stored, and as the handler sees it: unknown fields dropped, defaults filled in, transforms
 * done. It is parsed once, where it comes in: what is parsed again may become something else.
 *
 * @throws InvalidInput naming every field that does not fit, with paths from `payload`: no secret is in it. Secrets that could not be kept out of results and
 * errors do not fit: those that are no text or shorter than six characters, and what quotes a secret beside it. PermanentError as {@link parseAtOnce} does.
 */
export function parsePayload<C extends Contract>(contract: C, payload: unknown): PayloadOf<C> {
  const parsed = parseAtOnce(contract, 'input', payload, { error: describe })
  if (!parsed.success) throw misfit(contract, issuesWithoutSecrets(contract, parsed.error, payload))
  if (!contract.json.input.isPlain && parsed.data !== undefined) payloadJson(contract, parsed.data)
  if (contract.secrets.length > 0) {
    const issues = unsafeSecrets(contract, parsed.data)
    if (issues.length > 0) throw misfit(contract, issues)
  }
  return parsed.data as PayloadOf<C>
}

/**
 * What a schema of the contract makes of a value.
 *
 * @throws PermanentError with code `async_schema` when the schema waits for something: trying again cannot help.
 */
export function parseAtOnce(
  contract: Contract,
  side: 'input' | 'output',
  value: unknown,
  options?: z.core.ParseContext<z.core.$ZodIssue>,
): z.ZodSafeParseResult<unknown> {
  try {
    return contract[side].safeParse(value, options)
  } catch (error) {
    if (!(error instanceof z.core.$ZodAsyncError)) throw error
    const message = `The ${side} of ${contract.kind} has an async refinement or transform, and payloads and results are parsed at once: do it in the handler.`
    throw new PermanentError(message, { code: 'async_schema' })
  }
}

/** The issues of a payload: neither its own secrets are in them, nor those that a schema lists as the values it takes. */
function issuesWithoutSecrets(contract: Contract, error: z.core.$ZodError, payload: unknown): Issue[] {
  const issues = issuesOf(error, 'payload')
  if (contract.secrets.length === 0) return issues
  const { text } = createMask(secretsIn(contract, payload).filter(isLongEnough))
  const isSecret = (path: readonly PropertyKey[]) =>
    contract.secrets.some(
      (place) => place.length === path.length && place.every((step, i) => leadsTo(step, path[i] as string | number)),
    )
  return issues.map(({ path, message }, i) => {
    const { code, path: steps = [] } = error.issues[i] ?? {}
    const isListed = code === 'invalid_value' && isSecret(steps)
    return { path: text(path), message: isListed ? 'Invalid value' : text(message) }
  })
}

function misfit({ kind }: Contract, issues: Issue[]): InvalidInput {
  return new InvalidInput(`The payload does not fit ${kind}.`, issues)
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
    throw misfit(contract, [{ path: error.path, message }])
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

/** A secret in a payload, and where it is: `payload.keys.0`. */
type OnSecret = (value: unknown, at: string) => unknown

/** What becomes of the names and values beside secrets. */
interface Beside {
  name: (name: string) => string
  value: (value: unknown) => unknown
}

/** A copy of a payload with something else in the place of each secret; absent fields stay absent. */
function replaceSecrets(places: readonly Place[], value: unknown, onSecret: OnSecret, beside?: Beside): unknown {
  return replaceIn({ places, value, at: 'payload' }, onSecret, beside)
}

function replaceIn(
  { places, value, at }: { places: readonly Place[]; value: unknown; at: string },
  onSecret: OnSecret,
  beside: Beside | undefined,
): unknown {
  if (places.some(({ length }) => length === 0)) return onSecret(value, at)
  if (places.length === 0 || typeof value !== 'object' || value === null) return beside ? beside.value(value) : value
  const within = (name: string | number, field: unknown) => {
    const inside = places.flatMap(([step, ...rest]) => (step !== undefined && leadsTo(step, name) ? [rest] : []))
    return replaceIn({ places: inside, value: field, at: `${at}.${name}` }, onSecret, beside)
  }
  if (Array.isArray(value)) return value.map((item, i) => within(i, item))
  const nameOfField = (name: string) => (beside && !places.some(([step]) => step === name) ? beside.name(name) : name)
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [nameOfField(name), within(name, field)]))
}

function leadsTo(step: Step, name: string | number): boolean {
  if (typeof step === 'object') return typeof name === 'string' || name >= step.from
  return step === name
}

/** A copy of the payload with each secret replaced by what `replace` makes of it. */
export async function mapSecrets(
  { secrets: places }: Contract,
  payload: unknown,
  replace: (value: unknown) => unknown,
): Promise<unknown> {
  const found: unknown[] = []
  const note: OnSecret = (value) => (value === undefined || value === null ? value : found.push(value))
  replaceSecrets(places, payload, note)
  const replaced = (await Promise.all(found.map(replace))).values()
  const put: OnSecret = (value) => (value === undefined || value === null ? value : replaced.next().value)
  return replaceSecrets(places, payload, put)
}

/** The payload as it may be shown: `"[sealed]"` in the place of every secret, and of what quotes one that came in clear. */
export function redact(contract: Contract, payload: unknown): unknown {
  if (contract.secrets.length === 0) return payload
  const isClear = (text: string) => text !== SEALED && !text.startsWith(SEALED_PREFIX) && isLongEnough(text)
  const inClear = secretsIn(contract, payload).filter(isClear)
  const { text: name, value } = createMask(inClear)
  return replaceSecrets(contract.secrets, payload, () => SEALED, { name, value })
}

/** The payload of a child as it may be stored: what quotes a secret is masked, and its own secrets stay. */
export function maskPayload(contract: Contract, payload: unknown, { text: name, value }: Mask): unknown {
  return replaceSecrets(contract.secrets, payload, (own) => own, { name, value })
}

/** The texts in the places of secrets, so that they can be kept out of whatever is said: one each. */
export function secretsIn(contract: Contract, payload: unknown): string[] {
  const texts = new Set<string>()
  // Foreign programs may put anything there, nested as deep as they like.
  replaceSecrets(contract.secrets, payload, (value) => {
    const open = [value]
    while (open.length > 0) {
      const one = open.pop()
      if (typeof one === 'string' && one !== '') texts.add(one)
      else if (typeof one === 'object' && one !== null) for (const part of Object.values(one)) open.push(part)
    }
  })
  return [...texts]
}

/** Shorter ones would be found in any text: `k` would make "to[sealed]en" of "token". */
const MIN_SECRET_CHARS = 6

/** So many different secrets are looked for in each text of a task. */
const MAX_SECRETS = 100

export function isLongEnough(secret: string): boolean {
  return secret.length >= MIN_SECRET_CHARS
}

/** What keeps the secrets of a payload from being hidden wherever they are quoted. No value of the payload is in it. */
function unsafeSecrets(contract: Contract, payload: unknown): Issue[] {
  const issues: Issue[] = []
  const rest = replaceSecrets(contract.secrets, payload, (value, path) => {
    if (value === undefined || value === null || (typeof value === 'string' && isLongEnough(value))) return null
    const message = `A secret must be text of at least ${MIN_SECRET_CHARS} characters: nothing else can be kept out of results and errors`
    issues.push({ path, message })
    return null
  })
  if (issues.length > 0) return issues
  const secrets = secretsIn(contract, payload)
  if (secrets.length > MAX_SECRETS) {
    return [{ path: 'payload', message: `A payload may have at most ${MAX_SECRETS} different secrets` }]
  }
  const mask = createMask(secrets)
  const fields: [string, unknown][] = typeof rest === 'object' && rest !== null ? Object.entries(rest) : [['', rest]]
  return fields.flatMap(([name, field]) => {
    if (mask.value(field) === field && mask.text(name) === name) return []
    const message = 'This quotes a secret of the same payload, and would be stored in clear: leave it out'
    return [{ path: name === '' || mask.text(name) !== name ? 'payload' : `payload.${name}`, message }]
  })
}
