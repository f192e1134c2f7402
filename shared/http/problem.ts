import { HTTPException } from 'hono/http-exception'
import { InvalidInput, type Issue, StoreUnavailable, TaskerError } from '#shared/task/errors.ts'

/** Every kind of problem that an answer may name: its status and what it is called. */
const PROBLEMS = {
  malformed: [400, 'Malformed request'],
  unauthorized: [401, 'Unauthorized'],
  forbidden: [403, 'Forbidden'],
  cross_site: [403, 'Request from another site'],
  not_found: [404, 'Not found'],
  task_not_found: [404, 'Task not found'],
  method_not_allowed: [405, 'Method not allowed'],
  too_slow: [408, 'Request timeout'],
  state_conflict: [409, 'The state of the task does not allow it'],
  idempotency_conflict: [409, 'The idempotency key was used for another request'],
  too_large: [413, 'Content too large'],
  unsupported_media_type: [415, 'Unsupported media type'],
  misdirected: [421, 'Misdirected request'],
  invalid_input: [422, 'Invalid input'],
  too_many_requests: [429, 'Too many requests'],
  internal: [500, 'Internal error'],
  no_secret_key: [503, 'No key for secret fields'],
  misconfigured: [500, 'The service is not set up'],
  not_guarded: [503, 'The service is not set up'],
  too_many_waiters: [503, 'Too many requests wait'],
  store_busy: [503, 'Too much waits for the store'],
  too_many_bodies: [503, 'Too many bodies are under way'],
  stopping: [503, 'The service stops'],
  store_unavailable: [503, 'The store is unavailable'],
} as const satisfies Record<string, readonly [status: number, title: string]>

export type ProblemCode = keyof typeof PROBLEMS

/** An answer other than the one that was asked for, thrown by handlers: `onError` makes it an RFC 9457 body. `message` is its `detail`, so it is written for the caller. */
export class Problem extends Error {
  override readonly name = 'Problem'
  readonly code: ProblemCode
  readonly headers: Record<string, string>
  readonly issues: readonly Issue[]

  constructor(
    code: ProblemCode,
    detail: string,
    options: ErrorOptions & { headers?: Record<string, string>; issues?: readonly Issue[] } = {},
  ) {
    super(detail, options)
    this.code = code
    this.headers = options.headers ?? {}
    this.issues = options.issues ?? []
  }
}

/** A problem as it is answered. */
export interface ProblemAnswer {
  status: number
  headers: Record<string, string>
  /** JSON. */
  body: string
}

/**
 * The answer for anything that was thrown. Unknown errors become a 500 that says nothing about them; a prepared response of an HTTPException
 * gives its headers. `url` is that of the request: `instance` is its path.
 */
export function problemAnswer(error: unknown, url?: string): ProblemAnswer {
  const instance = url === undefined ? undefined : instanceOf(url)
  if (error instanceof HTTPException) return fromException(error, instance)
  const problem = toProblem(error)
  const [status, title] = PROBLEMS[problem.code]
  const type = `urn:tasker:problem:${problem.code.replaceAll('_', '-')}`
  const errors = problem.issues.length > 0 ? { errors: shortened(problem.issues) } : {}
  return answer(status, problem.headers, { type, title, status, detail: problem.message, instance, ...errors })
}

/** What of a validation is told: each of a million wrong items would be an answer of many times its request. */
const MAX_ISSUES = 100
const MAX_ISSUE_CHARS = 500

function shortened(issues: readonly Issue[]): Issue[] {
  const short = (text: string) =>
    text.length > MAX_ISSUE_CHARS ? `${text.slice(0, MAX_ISSUE_CHARS).toWellFormed()}…` : text
  const told = issues.slice(0, MAX_ISSUES).map(({ path, message }) => ({ path: short(path), message: short(message) }))
  const more = issues.length - told.length
  return more > 0 ? [...told, { path: '', message: `And ${more} more` }] : told
}

/**
 * The path of a URL as a reference of RFC 3986, which allows fewer characters than browsers do, and takes what follows
 * two slashes for a host.
 */
function instanceOf(url: string): string | undefined {
  return URL.parse(url)
    ?.pathname.replace(/[^\w.~!$&'()*+,;=:@/%-]|%(?![\da-f]{2})/gi, encodeURIComponent)
    .replace(/^\/\//, '/.//')
}

/** The problem that an error stands for. This is the one place where codes become statuses. */
function toProblem(error: unknown): Problem {
  if (error instanceof Problem) return error
  if (error instanceof InvalidInput) return new Problem('invalid_input', error.message, { issues: error.issues })
  if (error instanceof TaskerError) {
    if (error.code === 'task_not_found' || error.code === 'state_conflict')
      return new Problem(error.code, error.message)
    if (error.code === 'store_unavailable') {
      const isRefused = error instanceof StoreUnavailable && error.refused
      const what = isRefused
        ? "The store refuses: it is full, read-only or not set up for Tasker; the service's log has more under the id in X-Request-Id."
        : 'The store does not answer, or takes no changes now.'
      const detail = `${what} Send the request again: a creation with an Idempotency-Key is one task, even if the store has taken it already.`
      return new Problem('store_unavailable', detail, { headers: { 'Retry-After': '1' } })
    }
  }
  return new Problem('internal', 'Something went wrong here. The log has more under the id in X-Request-Id.')
}

function fromException(error: HTTPException, instance?: string): ProblemAnswer {
  const { status, message } = error
  const headers = Object.fromEntries(error.res?.headers ?? [])
  return answer(status, headers, { type: 'about:blank', title: message || `Error ${status}`, status, instance })
}

function answer(status: number, headers: Record<string, string>, body: unknown): ProblemAnswer {
  // Those of a prepared body, which is replaced.
  const { 'content-length': _length, 'content-encoding': _encoding, 'content-type': _type, ...kept } = headers
  return { status, headers: { ...kept, 'Content-Type': 'application/problem+json' }, body: JSON.stringify(body) }
}
