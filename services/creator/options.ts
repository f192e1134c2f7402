import * as z from 'zod'
import { type Contract, issuesOf, type PayloadOf, parsePayload } from '#shared/task/define.ts'
import { InvalidInput, type Issue } from '#shared/task/errors.ts'
import { MAX_ATTEMPTS, MAX_DELAY_MS, MAX_RETENTION_S, MAX_TIMEOUT_MS } from '#shared/task/limits.ts'
import { mayHaveField } from '#shared/task/schema.ts'
import { PRIORITIES } from '#shared/task/task.ts'

/** What a caller may set beside the payload. */
const optionsSchema = z
  .strictObject({
    priority: z.enum(PRIORITIES).optional(),
    /** Milliseconds to wait before the task is queued. */
    delay_ms: z.int().min(0).max(MAX_DELAY_MS).optional(),
    /** When the task is queued: ISO 8601 with a zone, or milliseconds since the epoch. */
    run_at: z
      .union([z.int().min(0).max(8.64e15), z.iso.datetime({ offset: true }).transform((text) => Date.parse(text))], {
        error: 'Expected an ISO 8601 time with a zone, or milliseconds since the epoch',
      })
      .optional(),
    timeout_ms: z.int().min(1).max(MAX_TIMEOUT_MS).optional(),
    max_attempts: z.int().min(1).max(MAX_ATTEMPTS).optional(),
    /** Seconds that the result is kept; 0 keeps it. */
    retention_s: z.int().min(0).max(MAX_RETENTION_S).optional(),
  })
  .refine(({ delay_ms, run_at }) => delay_ms === undefined || run_at === undefined, {
    path: ['run_at'],
    error: 'Set delay_ms or run_at, not both',
  })

export type TaskOptions = z.output<typeof optionsSchema>

/** What the body of a creation says. */
export interface Creation {
  payload: unknown
  /** The payload as it came. */
  given: unknown
  options: TaskOptions
}

/**
 * Reads the body of a creation: `{ payload, options? }`, or the payload itself.
 *
 * @throws InvalidInput naming everything in payload and options that is wrong, and what stands beside them.
 */
export function readCreation(contract: Contract, body: unknown): Creation {
  const { payload, options, issues } = unwrap(contract, body)
  const parsedPayload = collect(issues, () => parsePayload(contract, payload))
  const parsedOptions = optionsSchema.safeParse(options)
  if (!parsedOptions.success) issues.push(...issuesOf(parsedOptions.error, 'options'))
  if (issues.length > 0 || !parsedOptions.success) throw misfit(contract, issues)
  return { payload: parsedPayload, given: payload, options: parsedOptions.data }
}

const batchSchema = z.strictObject({ payloads: z.array(z.unknown()).min(1).max(1_000) })

/**
 * Reads the body of a batch: `{ payloads: [ … ] }`.
 *
 * @throws InvalidInput naming everything in every payload that is wrong, with paths such as `payloads.3.num1`.
 */
export function readBatch<C extends Contract>(contract: C, body: unknown): PayloadOf<C>[] {
  const batch = batchSchema.safeParse(body)
  if (!batch.success) throw misfit(contract, issuesOf(batch.error, 'body'))
  const issues: Issue[] = []
  const payloads = batch.data.payloads.flatMap((payload, index) => {
    const mine: Issue[] = []
    const parsed = collect(mine, () => parsePayload(contract, payload))
    issues.push(...mine.map(({ path, message }) => ({ path: path.replace(/^payload/, `payloads.${index}`), message })))
    return mine.length === 0 ? [parsed as PayloadOf<C>] : []
  })
  if (issues.length > 0) throw misfit(contract, issues)
  return payloads
}

const WRAPPED = '{"payload": {…}, "options": {…}}'

/** A field that the schema of a kind has by this name is a part of its payload. */
function unwrap(contract: Contract, body: unknown): { payload: unknown; options: unknown; issues: Issue[] } {
  if (!isObject(body)) return { payload: body, options: {}, issues: [] }
  const { payload, options = {}, ...others } = body
  const names = Object.keys(others)
  const isOwn = (name: string) => mayHaveField(contract.input, name)
  if (!Object.hasOwn(body, 'payload') || (isOwn('payload') && !(isObject(payload) && names.length === 0))) {
    const isMisplaced = Object.hasOwn(body, 'options') && !isOwn('options')
    return { payload: body, options: {}, issues: isMisplaced ? [beside('options', contract)] : [] }
  }
  // A payload that stands beside fields of the payload is in none of the two forms.
  if (names.some(isOwn)) return { payload: body, options: {}, issues: [beside('payload', contract)] }
  const issues = names.map((path) => ({ path, message: `Unknown field beside the payload: send ${WRAPPED}` }))
  return { payload, options, issues }
}

function beside(path: 'payload' | 'options', { kind }: Contract): Issue {
  return { path, message: `Not a field of ${kind}: send ${WRAPPED}, or the fields of the payload alone` }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function collect<T>(issues: Issue[], parse: () => T): T | undefined {
  try {
    return parse()
  } catch (error) {
    if (!(error instanceof InvalidInput)) throw error
    issues.push(...error.issues)
    return undefined
  }
}

function misfit(contract: Contract, issues: Issue[]): InvalidInput {
  return new InvalidInput(`The request does not fit ${contract.kind}.`, issues)
}
