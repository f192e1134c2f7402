import type { Command } from './command.ts'
import type { Reply } from './reply.ts'

/** Asks Redis how many commands it has run, those within scripts included. */
export const COUNT: Command = { name: 'INFO', args: ['stats'] }

/**
 * How many commands ran inside scripts between two replies to {@link COUNT}, with `own` commands sent in between. Exact when all of it was
 * one transaction: then nobody else's command is counted.
 */
export function commandsInside(before: Reply | undefined, after: Reply | undefined, own: number): number {
  // The second count has the first in it.
  return Math.max(0, processed(after) - processed(before) - 1 - own)
}

function processed(info: Reply | undefined): number {
  const digits = Buffer.isBuffer(info)
    ? /^total_commands_processed:(\d+)/m.exec(info.toString('latin1'))?.[1]
    : undefined
  return Number(digits ?? 0)
}
