import {
  type Contract,
  fromStored,
  isLongEnough,
  maskPayload,
  parsePayload,
  payloadJson,
  secretsIn,
} from '#shared/task/define.ts'
import { InvalidInput, PermanentError } from '#shared/task/errors.ts'
import { givenOf, isGivenAgain } from '#shared/task/given.ts'
import { createMask, type Mask, NO_MASK } from '#shared/task/mask.ts'
import { type ParentRef, PRIORITIES } from '#shared/task/task.ts'
import { decodeThrown, encodeThrown, type Thrown } from '#shared/task/thrown.ts'
import type { CallOptions } from './implement.ts'
import { limitSize } from './limits.ts'

/** A hundred years: later is no time that every store and language can hold. */
const MAX_SLEEP_MS = 100 * 365 * 86_400_000

/** How long payloads are copied and validated when they are called, in ms; those that are left have their turn in slices. */
export const PREPARE_MS = 8

/** What a child costs beside its payload, in characters. */
const CHARS_EACH = 16

/** What a handler awaits of its context. */
export type Entry = CallEntry | StepEntry | SleepEntry

const OPEN = Symbol('open')

export type Result = { value: unknown } | { error: Error }

/** What entries have in common: a number, a promise, and the moment they completed. */
class Awaited<T> {
  readonly first: number
  readonly promise: Promise<T>
  /** When it completed, in ms since the epoch; null while it has not. */
  completedAt: number | null = null
  /** Whether the store was asked for it, or need not be. */
  isLooked = false
  /** It failed by itself, and not as a task: this is kept as history when the handler goes on from it. */
  failure: Thrown | null = null
  /** Whether that is in the store. */
  isRecorded = false
  /** What its promise was rejected with. */
  rejection: Error | null = null
  protected readonly resolve: (value: T) => void
  readonly #reject: (error: Error) => void

  constructor(first: number) {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    this.first = first
    this.promise = promise
    this.resolve = resolve
    this.#reject = reject
  }

  protected reject(error: Error): void {
    this.rejection = error
    // A handler may await one call and never look at another one that failed.
    this.promise.catch(() => undefined)
    this.#reject(error)
  }
}

/** A durable sleep. */
export class SleepEntry extends Awaited<void> {
  readonly type = 'sleep'
  readonly size = 1
  readonly name = 'ctx.sleep'
  readonly label = 'sleep'
  readonly ms: number
  /** Ms since the epoch; null before it is known. */
  until: number | null = null

  constructor(first: number, ms: number) {
    super(first)
    this.ms = Math.round(Math.min(Math.max(ms, 0), MAX_SLEEP_MS))
  }

  deliver(): void {
    this.resolve()
  }
}

/** A side effect whose result is recorded. */
export class StepEntry extends Awaited<unknown> {
  readonly type = 'step'
  readonly size = 1
  /** Its name in the history. */
  readonly label: string
  state: 'new' | 'running' | 'ended' = 'new'
  /** What its effect gave or threw, when it has ended in this run. */
  result: { value: unknown } | { thrown: unknown } | null = null
  /** The result as JSON. */
  json: string | null = null
  /** When its effect ended; it completes when that is stored. */
  endedAt = 0
  readonly #begin: () => void
  readonly #ending: Promise<unknown>

  constructor(first: number, label: string, effect: () => unknown) {
    super(first)
    this.label = label
    // In this way it runs in the handler's own AsyncLocalStorage.
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#begin = resolve
    this.#ending = promise.then(effect)
  }

  get name(): string {
    return `ctx.step(${JSON.stringify(this.label)})`
  }

  start(onEnd: (step: StepEntry) => void): void {
    this.state = 'running'
    this.#ending.then(
      (value) => this.#end({ value }, onEnd),
      (error: unknown) => this.#end({ thrown: error }, onEnd),
    )
    this.#begin()
  }

  #end(result: StepEntry['result'], onEnd: (step: StepEntry) => void): void {
    this.state = 'ended'
    this.result = result
    onEnd(this)
  }

  deliver(): void {
    if (this.failure) this.reject(decodeThrown(this.failure))
    else this.resolve(JSON.parse(this.json ?? 'null'))
  }
}

/** Children called together: `ctx.call` is a group of one. Child i has number `first + i`. */
export class CallEntry extends Awaited<unknown> {
  readonly type = 'call'
  readonly size: number
  readonly contract: Contract
  readonly options: CallOptions
  /** Children that have not ended. */
  left: number
  /** Children, by index, that the store does not know yet. */
  missing: number[] = []
  /** How the parent awaits it: see `ParentRef`. Null before the handler has come to rest. */
  group: ParentRef['group'] | null = null
  /** Whether the store knows all of it. */
  isSent = false
  /** Characters that it holds. */
  chars = 0
  /** When the last of its children ended. */
  endedAt = 0
  readonly #isSingle: boolean
  /** Results by child; `OPEN` where it has not ended. */
  readonly #values: unknown[]
  /** The failure of the child with the lowest number that failed. */
  #failed: { i: number; error: Error } | null = null
  readonly #payloads: readonly unknown[]
  readonly #known: number
  readonly #mask: Mask
  #payloadMask = NO_MASK
  /** The payloads as they were given, as JSON. */
  readonly #given: string[] = []
  /** As they are stored, where they are known to fit. */
  readonly #texts: string[] = []

  constructor(call: {
    first: number
    contract: Contract
    payloads: readonly unknown[]
    options: CallOptions
    isSingle: boolean
    /** Length of the history: what an earlier run has called is compared, and not parsed again. */
    known: number
    /** Hides the secrets of the parent. */
    mask: Mask
  }) {
    super(call.first)
    const { contract, payloads, options, isSingle, known, mask } = call
    this.size = payloads.length
    this.left = payloads.length
    this.contract = contract
    this.options = options
    this.#values = Array.from({ length: payloads.length }, () => OPEN)
    this.#isSingle = isSingle
    this.#known = known
    this.#mask = mask
    this.#payloads = payloads.length > 1 ? payloads.slice() : payloads
    try {
      checkOptions(options)
    } catch (error) {
      this.failure = encodeThrown(error, mask)
    }
    this.prepare(payloads.length > 64 ? performance.now() + PREPARE_MS : Number.POSITIVE_INFINITY)
  }

  get name(): string {
    return `ctx.${this.#isSingle ? 'call' : 'map'}(${this.contract.kind})`
  }

  get label(): string {
    return `call of ${this.contract.kind}`
  }

  /** Copies payloads as JSON, and validates those that are new, until a moment of `performance.now()`. Returns whether that was all. */
  prepare(until: number): boolean {
    if (this.failure || this.#given.length === this.size) return true
    for (let i = this.#given.length; i < this.size; i++) {
      try {
        this.#prepare(i)
      } catch (error) {
        if (!(error instanceof InvalidInput || error instanceof PermanentError)) throw error
        // Its own secrets are in none of what is said of it, and the parent's are hidden here.
        this.failure = encodeThrown(this.#isSingle ? error : named(error, i), this.#mask)
        return true
      }
      if (i % 64 === 63 && performance.now() > until && i < this.size - 1) return false
    }
    return true
  }

  /** A payload as it may leave the run: what quotes a secret, of the parent's or its own, is masked. */
  #masked(i: number): unknown {
    const { contract } = this
    const payload = this.#payloads[i]
    if (this.#mask === NO_MASK && contract.secrets.length === 0) return payload
    const secrets = [...new Set([...this.#mask.secrets, ...secretsIn(contract, payload)])].filter(isLongEnough)
    // Nearly always children are given the same ones.
    if (secrets.join('\n') !== this.#payloadMask.secrets.join('\n')) this.#payloadMask = createMask(secrets)
    return maskPayload(contract, payload, this.#payloadMask)
  }

  #prepare(i: number): void {
    const given = this.#masked(i)
    if (this.first + i >= this.#known) {
      const parsed = parsePayload(this.contract, given)
      const text = JSON.stringify(parsed === undefined ? null : parsed)
      limitSize(text, () => `The payload of ${this.name}`)
      this.#given[i] = isWrittenAs(given, text) ? text : payloadJson(this.contract, given)
      this.#texts[i] = text
    } else this.#given[i] = payloadJson(this.contract, given)
    this.chars += (this.#given[i]?.length ?? 0) + CHARS_EACH
  }

  /** What is stored as the payload of a child, and a digest of what was given, where that was something else. */
  payloadOf(i: number): { text: string; given: string | undefined } {
    const given = this.#given[i] ?? 'null'
    let text = this.#texts[i]
    if (text === undefined) {
      text = JSON.stringify(this.#parseAgain(i, given) ?? null)
    }
    if (text === given) return { text, given: undefined }
    return { text, given: givenOf(this.contract, JSON.parse(given), JSON.parse(text)) }
  }

  /** Of what an earlier run has called, and is forgotten since. */
  #parseAgain(i: number, given: string): unknown {
    try {
      return parsePayload(this.contract, fromStored(this.contract.json.input, JSON.parse(given)))
    } catch (error) {
      // A schema may take what JSON writes as something else.
      if (!(error instanceof InvalidInput)) throw error
      return parsePayload(this.contract, this.#masked(i))
    }
  }

  /** Whether what is stored of a child is what was called now. */
  isSamePayload(i: number, stored: { payload?: unknown; given?: string }): boolean {
    const text = this.#given[i] ?? 'null'
    // Nearly always they are the same to the letter.
    if (stored.given === undefined && JSON.stringify(stored.payload) === text) return true
    return isGivenAgain(this.contract, JSON.parse(text), stored) || this.#isParsedAs(text, stored)
  }

  /** Whether a child of a version that kept no digest was called with this. */
  #isParsedAs(text: string, stored: { payload?: unknown; given?: string }): boolean {
    if (stored.given !== undefined) return false
    try {
      const parsed = parsePayload(this.contract, fromStored(this.contract.json.input, JSON.parse(text)))
      return isGivenAgain(this.contract, parsed, stored)
    } catch (error) {
      if (error instanceof InvalidInput) return false
      throw error
    }
  }

  /** Notes how a child ended, and when. */
  end(i: number, result: Result, endedAt: number): void {
    if (this.hasEnded(i)) return
    if ('value' in result) this.#values[i] = result.value
    else {
      this.#values[i] = undefined
      if (this.#failed === null || i < this.#failed.i) this.#failed = { i, error: result.error }
    }
    this.left--
    this.endedAt = Math.max(this.endedAt, endedAt)
    if (this.left === 0) this.completedAt = this.endedAt
  }

  hasEnded(i: number): boolean {
    return this.#values[i] !== OPEN
  }

  deliver(): void {
    const error = this.failure ? decodeThrown(this.failure) : this.#failed?.error
    if (error) this.reject(error)
    else this.resolve(this.#isSingle ? this.#values[0] : this.#values)
  }
}

function named(error: Error, i: number): Error {
  if (!(error instanceof InvalidInput)) return error
  const issues = error.issues.map(({ path, message }) => ({ path: path.replace(/^payload/, `payloads.${i}`), message }))
  return new InvalidInput(error.message, issues)
}

/** Whether JSON writes a value as this text. */
function isWrittenAs(value: unknown, text: string): boolean {
  try {
    return JSON.stringify(value === undefined ? null : value) === text
  } catch {
    return false
  }
}

/** Untyped code may give anything. */
function checkOptions(options: CallOptions): void {
  const issues = Object.entries(options).flatMap(([name, value]) => {
    const path = `options.${name}`
    if (name === 'priority') {
      if (value === undefined || PRIORITIES.some((priority) => priority === value)) return []
      return [{ path, message: `Expected one of ${PRIORITIES.join(', ')}` }]
    }
    if (name !== 'maxAttempts') return [{ path, message: 'There is no such option: use priority or maxAttempts' }]
    if (value === undefined || (Number.isSafeInteger(value) && value >= 1 && value <= 100)) return []
    return [{ path, message: 'Expected a whole number from 1 to 100' }]
  })
  if (issues.length > 0) throw new InvalidInput('The options of a call do not fit.', issues)
}
