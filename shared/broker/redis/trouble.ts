/**
 * What an operator is told when Redis cannot be used: where it was looked for, why it did not work, what to do. Never a
 * user, a password or a command.
 */

/** Where a URL of Redis leads, without the user and the password in it. */
export function placeOf(url: string): string {
  const sentinels = /^redis\+sentinel:\/\/(.*)\/([^/]*)$/.exec(url)
  if (!sentinels) return Array.from(url.split(BETWEEN_NODES), nodeOf).join(', ')
  const [, hosts = '', name = ''] = sentinels
  return `"${name}" of the sentinels ${hosts.slice(hosts.lastIndexOf('@') + 1).replaceAll(',', ', ')}`
}

/** A comma in a password stands before an `@`, and no other does before the next node begins. */
const BETWEEN_NODES = /,\s*(?=rediss?:\/\/)|,\s*(?!(?:(?!:\/\/).)*@)/

/** A password may hold any character: what stands behind the last `@` is the host. */
function nodeOf(url: string): string {
  const behindUser = url.slice(url.lastIndexOf('@') + 1)
  const host = behindUser.replace(/^.*:\/\//, '').replace(/[?].*$/, '')
  const [address = '', database = ''] = host.split('/')
  const withPort = /:\d+$/.test(address) ? address : `${address || 'localhost'}:6379`
  return database === '' ? withPort : `${withPort}/${database}`
}

/** What an error says, by the code or the words in it; the first that fits. */
const REASONS: readonly [RegExp, string][] = [
  [/ECONNREFUSED/, 'nothing listens there: start Redis, or correct REDIS_URL'],
  [/ENOTFOUND|EAI_AGAIN/, 'that host is not known: correct REDIS_URL'],
  [
    /ETIMEDOUT|EHOSTUNREACH|ENETUNREACH/,
    'it cannot be reached in time: correct REDIS_URL (host, redis:// or rediss://), or open the network to it',
  ],
  [/secure TLS|SSL|TLS/, 'it does not speak TLS there: use redis:// in REDIS_URL, or its port for TLS'],
  [/NOAUTH/, 'it asks for a password: set REDIS_URL to redis://:PASSWORD@HOST:PORT'],
  [/WRONGPASS|invalid password/, 'it refuses the user or the password: correct them in REDIS_URL'],
  [/NOPERM/, 'the user in REDIS_URL is not allowed to (NOPERM): see docs/protocol.md for the keys and channels'],
  [/DB index/, 'it has no database of that number: correct the end of REDIS_URL'],
  [/cluster support disabled/, 'it is no Cluster: name one server in REDIS_URL'],
  [
    /^(MOVED|CROSSSLOT)|keys that do not hash/,
    'it is a node of a Cluster: name several of them in REDIS_URL, comma-separated, and set TASKER_PARTITIONS to 2 or more',
  ],
  [/No such master/, 'they know no primary of that name: correct the end of REDIS_URL'],
  [/sentinels are unreachable/, 'no sentinel answers: start them, or correct REDIS_URL'],
  [/refresh slots cache|startup nodes/, 'no node answers: start them, or correct REDIS_URL'],
  [/Unknown Redis command|unknown command/i, 'it is too old: Tasker needs Redis 7.0 or newer'],
  [/Protocol error|protocol/i, 'what answers there is not Redis: correct REDIS_URL'],
  [
    /^No word yet/,
    'it says nothing: see whether REDIS_URL leads to a Redis, and with TLS (rediss://) or without (redis://)',
  ],
  [/timed out/, 'it was silent for too long'],
  [/OOM/, 'it is full (OOM): raise its maxmemory, or let results expire sooner'],
  [/MISCONF/, 'it cannot write to its disk (MISCONF)'],
]

/** The same of Redis over REST. */
const REST_REASONS: readonly [RegExp, string][] = [
  [
    /WRONGPASS|NOAUTH|Unauthorized/i,
    'it does not accept the token: set UPSTASH_REDIS_REST_TOKEN to that of this database',
  ],
  [/NOPERM/, 'the token is not allowed to (NOPERM): one that may only read is not enough'],
  [/ECONNREFUSED/, 'nothing listens there: correct UPSTASH_REDIS_REST_URL'],
  [/ENOTFOUND|EAI_AGAIN|dns error/, 'that host is not known: correct UPSTASH_REDIS_REST_URL'],
  [/EPROTO|TLS|certificate/i, 'it does not speak TLS there: use http:// in UPSTASH_REDIS_REST_URL'],
  [/JSONParse/, 'what answers there is not Redis over REST: correct UPSTASH_REDIS_REST_URL'],
  [/Timeout|timed out/i, 'it was silent for too long'],
  [/OOM/, 'it is full (OOM): raise its limit, or let results expire sooner'],
]

/**
 * Why Redis could not be used, for its operator. Of a text that is not known, no more than a code is told: it may carry
 * the command.
 */
export function reasonOf(error: Error, over: 'TCP' | 'REST' = 'TCP'): string {
  const cause = error.cause instanceof Error ? error.cause.message : ''
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  // The REST client's errors end with the command.
  const [words = ''] = error.message.split(', command was: ')
  const told = over === 'TCP' ? words : `${error.name} ${code} ${words} ${cause}`
  const known = (over === 'TCP' ? REASONS : REST_REASONS).find(([pattern]) => pattern.test(told) || pattern.test(code))
  if (known) return known[1]
  // Of a script's own fault the place is worth keeping.
  const place = /user_script:\d+:[^@]{0,120}/.exec(words)?.[0]
  return place ?? /^[A-Z]{3,}\b/.exec(words)?.[0] ?? 'the connection was lost'
}

/** What an error says where nothing was heard before a connection was ever used. */
export const NO_WORD = 'No word yet.'

/** Errors that only follow from an earlier one, which says more. */
export function isConsequence(error: Error): boolean {
  return /^(Stream isn't writeable|Connection is closed)/.test(error.message)
}
