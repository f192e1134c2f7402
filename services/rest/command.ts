/** A Redis command: its name in capitals and its arguments. */
export interface Command {
  readonly name: string
  readonly args: readonly Argument[]
}

/** Text goes to Redis as UTF-8. */
export type Argument = string | Buffer

/** The request is not what the protocol asks for. Answered with status 400 and this message. */
export class BadRequest extends Error {
  override readonly name = 'BadRequest'
}

/** How many commands one pipeline or transaction may have. */
export const MAX_COMMANDS = 10_000

/**
 * The command in a body such as `["SET", "key", 1]`. Numbers are taken as they are written, so no digit is lost.
 *
 * @throws BadRequest
 */
export function parseCommand(body: string): Command {
  return toCommand(parseJson(body), 'a command: an array such as ["GET", "key"]')
}

/**
 * The commands in a body such as `[["SET", "key", 1], ["GET", "key"]]`.
 *
 * @throws BadRequest also when there are none, or more than {@link MAX_COMMANDS}.
 */
export function parseCommands(body: string): Command[] {
  const parsed = parseJson(body)
  const what = 'an array of commands such as [["GET", "key"]]'
  if (!Array.isArray(parsed) || parsed.length === 0) throw new BadRequest(`ERR The body must be ${what}`)
  if (parsed.length > MAX_COMMANDS) {
    throw new BadRequest(`ERR A request may have ${MAX_COMMANDS} commands, and this one has ${parsed.length}`)
  }
  return parsed.map((entry: unknown) => toCommand(entry, what))
}

/**
 * The command in a URL such as `/set/key/value?EX=100`: the segments of its path, then the body, then the query without `_token`.
 *
 * @throws BadRequest when something in it is not percent-encoded well.
 */
export function commandOfUrl(url: URL, body: Buffer): Command {
  const [name, ...args] = pathArguments(url)
  if (body.length > 0) args.push(body)
  for (const pair of url.search.slice(1).split('&')) {
    if (pair === '') continue
    const at = pair.indexOf('=')
    const parts = at < 0 ? [pair] : [pair.slice(0, at), pair.slice(at + 1)]
    const decoded = parts.map((part) => decode(part.replaceAll('+', ' ')))
    // However it is written: it is no argument, and must not get to Redis, where logs may show it.
    if (String(decoded[0]) !== '_token') args.push(...decoded)
  }
  return { name: String(name).toUpperCase(), args }
}

/** The decoded segments of a path, without the slash that begins it. */
export function pathArguments(url: URL): Argument[] {
  return url.pathname.slice(1).split('/').map(decode)
}

// Bytes that are not UTF-8 stay what they are: decodeURIComponent would refuse them.
function decode(part: string): Argument {
  if (!part.includes('%')) return part
  if (/%(?![0-9a-f]{2})/i.test(part)) throw new BadRequest('ERR The URL is not percent-encoded well')
  const bytes = part.replace(/%([0-9a-f]{2})/gi, (_match, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
  return Buffer.from(bytes, 'latin1')
}

function parseJson(body: string): unknown {
  try {
    return JSON.parse(body, digits)
  } catch {
    throw new BadRequest('ERR The body is not valid JSON')
  }
}

// The third argument is newer than the type of JSON.parse.
function digits(this: unknown, _key: string, value: unknown, context?: { source?: string }): unknown {
  return typeof value === 'number' ? (context?.source ?? String(value)) : value
}

function toCommand(value: unknown, what: string): Command {
  if (!Array.isArray(value) || value.length === 0) throw new BadRequest(`ERR The body must be ${what}`)
  const [name, ...args] = value.map(toArgument)
  return { name: String(name).toUpperCase(), args }
}

function toArgument(value: unknown): string {
  if (typeof value === 'string') return value
  if (typeof value === 'boolean') return String(value)
  throw new BadRequest('ERR An argument of a command must be a string, a number or a boolean')
}
