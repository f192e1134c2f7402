import { CALLS, callsWithin } from './billing.ts'
import type { Command } from './command.ts'
import type { Connection } from './connection.ts'
import type { Bill } from './metrics.ts'
import { refusal } from './refused.ts'
import { type Reply, ReplyError } from './reply.ts'
import { createScripts, runsCommands } from './script.ts'

/** Runs the commands of requests. An error reply is a reply like any other; the methods throw only NoReply. */
export interface Executor {
  /** Writes to Redis before it returns, so calls in one tick run in their order; other requests may run in between. */
  run(command: Command, bill: Bill): Promise<Reply>
  /** All or none, and nothing in between: a reply for each command, or one error when none was run. */
  runTransaction(commands: readonly Command[], bill: Bill): Promise<readonly Reply[] | Error>
}

const MULTI: Command = { name: 'MULTI', args: [] }
const EXEC: Command = { name: 'EXEC', args: [] }

interface Transaction {
  readonly begun: boolean
  /** What each command was answered when it was queued. */
  readonly queued: readonly Reply[]
  /** What EXEC said. */
  readonly results: Reply
}

export function createExecutor(connection: Connection): Executor {
  const scripts = createScripts()

  const transact = async (commands: readonly Command[]): Promise<Transaction> => {
    const replies = await Promise.all([MULTI, ...commands, EXEC].map((command) => connection.send(command)))
    return { begun: !(replies[0] instanceof Error), queued: replies.slice(1, -1), results: replies.at(-1) ?? null }
  }

  // What a script runs is read from Redis' own counters, just before and after it, in one transaction with it.
  const runScript = async (command: Command, bill: Bill): Promise<Reply> => {
    const { begun, queued, results } = await transact([CALLS, command, CALLS])
    if (Array.isArray(results)) {
      bill.script(callsWithin(results[0], results[2], [command]))
      return results[1]
    }
    const [, own = null] = queued
    // Without a transaction it has run as it came.
    if (!begun) return own
    // A Redis without memory to spare queues nothing, and yet runs scripts that only read: then it is the count that is given up.
    return own instanceof Error && !own.message.startsWith('OOM') ? own : connection.send(command)
  }

  return {
    async run(command, bill) {
      const reason = refusal(command)
      if (reason !== null) return new ReplyError(reason)
      const translated = scripts.translate(command)
      const sending = runsCommands(command.name)
        ? runScript(translated.command, bill)
        : connection.send(translated.command)
      const reply = translated.answer(await sending)
      bill.command(labelOf(command, reply))
      return reply
    },

    async runTransaction(commands, bill) {
      for (const command of commands) {
        const reason = refusal(command)
        if (reason !== null) return new ReplyError(`EXECABORT Transaction discarded because of: ${reason}`)
      }
      const translated = commands.map((command) => scripts.translate(command))
      const own = translated.map(({ command }) => command)
      const counted = own.some(({ name }) => runsCommands(name))
      const { queued, results } = await transact(counted ? [CALLS, ...own, CALLS] : own)
      const first = counted ? 1 : 0
      commands.forEach((command, index) => {
        bill.command(labelOf(command, queued[first + index] ?? null))
      })
      if (!Array.isArray(results))
        return results instanceof Error ? results : new ReplyError('EXECABORT Transaction discarded')
      if (counted) bill.script(callsWithin(results[0], results.at(-1), own))
      return translated.map(({ answer }, index) => answer(results[first + index] ?? null))
    },
  }
}

// Callers must not be able to make metrics without end.
function labelOf(command: Command, reply: Reply): string {
  return reply instanceof Error && reply.message.startsWith('ERR unknown command') ? 'unknown' : command.name
}
