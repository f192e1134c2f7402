import type { Command } from './command.ts'
import type { Reply } from './reply.ts'

/** How often each command was called, by its name in small letters. */
export type Calls = ReadonlyMap<string, number>

/** Asks Redis how often each command was called since it began. */
export const CALLS: Command = { name: 'INFO', args: ['commandstats'] }

/**
 * The commands that scripts ran between two replies to {@link CALLS}. Exact only when both and `own`, the commands in between, were one
 * transaction: then nobody else's command is counted.
 */
export function callsWithin(before: Reply | undefined, after: Reply | undefined, own: readonly Command[]): Calls {
  const first = parse(before)
  const calls = new Map<string, number>()
  for (const [name, count] of parse(after)) {
    const more = count - (first.get(name) ?? 0)
    if (more > 0) calls.set(name, more)
  }
  take(calls, CALLS.name.toLowerCase())
  for (const { name, args } of own) {
    take(calls, `${name}|${String(args[0])}`.toLowerCase()) || take(calls, name.toLowerCase())
  }
  return calls
}

function take(calls: Map<string, number>, name: string): boolean {
  const count = calls.get(name)
  if (count === undefined) return false
  if (count > 1) calls.set(name, count - 1)
  else calls.delete(name)
  return true
}

// Lines such as cmdstat_script|load:calls=3,usec=…
function parse(info: Reply | undefined): Map<string, number> {
  const counts = new Map<string, number>()
  if (!(info instanceof Buffer)) return counts
  for (const [, name = '', count] of info.toString().matchAll(/^cmdstat_([^:\r\n]+):calls=(\d+)/gm)) {
    counts.set(name, Number(count))
  }
  return counts
}
