import type { Argument, Command } from './command.ts'

const REASONS = {
  waits: 'it may wait, and a REST request must not',
  connection: 'it is about a connection, and a REST request has none of its own',
  transaction: 'use POST /multi-exec for a transaction',
  subscription: 'use POST /subscribe/<channel> or POST /psubscribe/<pattern>',
  administration: 'it administers the server',
} as const
type Reason = keyof typeof REASONS

const COMMANDS: Record<Reason, string> = {
  waits: 'BLPOP BRPOP BRPOPLPUSH BLMOVE BLMOVEM BLMPOP BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF',
  connection: 'SELECT AUTH HELLO CLIENT RESET QUIT READONLY READWRITE ASKING HIMPORT',
  transaction: 'MULTI EXEC DISCARD WATCH UNWATCH',
  subscription: 'SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUNSUBSCRIBE',
  administration:
    'MONITOR CONFIG SHUTDOWN DEBUG SAVE BGSAVE BGREWRITEAOF LASTSAVE REPLICAOF SLAVEOF REPLCONF ROLE FAILOVER CLUSTER ACL MODULE MIGRATE ' +
    'RESTORE-ASKING SWAPDB SLOWLOG COMMANDLOG LATENCY PSYNC SYNC PFDEBUG PFSELFTEST',
}

/** Of these only the named subcommands are let through; the others administer the server. */
const SUBCOMMANDS: Record<string, string> = {
  SCRIPT: 'LOAD EXISTS FLUSH HELP',
  FUNCTION: 'LOAD DELETE FLUSH LIST STATS HELP',
  MEMORY: 'USAGE HELP',
}

const refused = new Map<string, Reason>()
for (const reason of Object.keys(COMMANDS) as Reason[]) {
  for (const name of COMMANDS[reason].split(' ')) refused.set(name, reason)
}
const allowedSubcommands = new Map(Object.entries(SUBCOMMANDS).map(([name, list]) => [name, new Set(list.split(' '))]))

/** Why a command is not for a REST request, as the text of an error reply; null when it is. */
export function refusal({ name, args }: Command): string | null {
  const reason = refused.get(name) ?? (isBlockingRead(name, args) ? 'waits' : undefined)
  if (reason !== undefined) return text(name, reason)
  const allowed = allowedSubcommands.get(name)
  if (allowed === undefined || args[0] === undefined) return null
  const subcommand = String(args[0]).toUpperCase()
  return allowed.has(subcommand) ? null : text(`${name} ${subcommand}`, 'administration')
}

/**
 * The same as rules of Redis for a user, which hold in scripts, too. Of what waits nothing does in a script, and
 * transactions and subscriptions Redis refuses there by itself.
 *
 * @param known The commands of the server: it takes no rule for others.
 */
export function rulesFor(known: readonly string[]): string[] {
  const has = new Set(known.map((name) => name.toUpperCase()))
  const names = `${COMMANDS.connection} ${COMMANDS.administration}`.split(' ').filter((name) => has.has(name))
  const partly = Object.entries(SUBCOMMANDS).filter(([name]) => has.has(name))
  return [
    ...['+@all', '-@admin'],
    ...names.map((name) => `-${name}`),
    ...partly.flatMap(([name, list]) => [`-${name}`, ...list.split(' ').map((subcommand) => `+${name}|${subcommand}`)]),
  ]
}

function text(name: string, reason: Reason): string {
  return `ERR Command is not available: '${name}': ${REASONS[reason]}`
}

// The options stand before STREAMS; what follows it are keys, of which one may be called BLOCK.
function isBlockingRead(name: string, args: readonly Argument[]): boolean {
  if (name !== 'XREAD' && name !== 'XREADGROUP') return false
  for (const arg of args.slice(name === 'XREADGROUP' ? 3 : 0)) {
    const option = String(arg).toUpperCase()
    if (option === 'STREAMS') return false
    if (option === 'BLOCK') return true
  }
  return false
}
