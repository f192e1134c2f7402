import { COUNT, commandsInside } from './billing.ts'
import type { Command } from './command.ts'
import type { Connection } from './connection.ts'
import type { Bill } from './metrics.ts'
import { refusal } from './refused.ts'
import { type Reply, ReplyError } from './reply.ts'
import { createScripts, runsCommands } from './script.ts'

/** Runs the commands of requests. An error reply is a reply like any other; the methods throw only NoReply. */
export interface Executor {
  /** In their order, each for itself; commands of other requests may run in between. A reply for each. */
  run(commands: readonly Command[], bill: Bill): Promise<readonly Reply[]>
  /** All or none, and nothing in between: a reply for each command, or one error when none was run. */
  runTransaction(commands: readonly Command[], bill: Bill): Promise<readonly Reply[] | Error>
}

const MULTI: Command = { name: 'MULTI', args: [] }
const EXEC: Command = { name: 'EXEC', args: [] }

export function createExecutor(connection: Connection): Executor {
  const scripts = createScripts()

  const planOf = (command: Command): Plan => {
    const reason = refusal(command)
    if (reason !== null) return { sent: [], read: () => new ReplyError(reason) }
    const { command: own, answer } = scripts.translate(command)
    const read = (reply: Reply, bill: Bill): Reply => {
      bill.command(labelOf(command, reply))
      return answer(reply)
    }
    if (!runsCommands(own.name)) return { sent: [own], read: ([reply = null], bill) => read(reply, bill) }
    // What a script runs is read from Redis' own count, just before and after it, in one transaction with it.
    return {
      sent: [MULTI, COUNT, own, COUNT, EXEC],
      async read(replies, bill) {
        const [multi, , queued = null, , results] = replies
        if (Array.isArray(results)) {
          bill.inScript(commandsInside(results[0], results[2], 1))
          return read(results[1] ?? null, bill)
        }
        // Without a transaction it has run as it came.
        if (multi instanceof Error) return read(queued, bill)
        const refused = queued instanceof Error && !queued.message.startsWith('OOM')
        // A Redis without memory to spare queues nothing, and yet runs scripts that only read: then it is the count that is given up.
        const [reply = null] = refused ? [queued] : await connection.send([own])
        return read(reply, bill)
      },
    }
  }

  return {
    async run(commands, bill) {
      const plans = commands.map(planOf)
      const replies = await connection.send(plans.flatMap(({ sent }) => sent))
      let at = 0
      const reading = plans.map(({ sent, read }) => {
        const own = replies.slice(at, at + sent.length)
        at += sent.length
        return read(own, bill)
      })
      return Promise.all(reading)
    },

    async runTransaction(commands, bill) {
      for (const command of commands) {
        const reason = refusal(command)
        if (reason !== null) return new ReplyError(`EXECABORT Transaction discarded because of: ${reason}`)
      }
      const translated = commands.map((command) => scripts.translate(command))
      const own = translated.map(({ command }) => command)
      const counted = own.some(({ name }) => runsCommands(name)) ? [COUNT] : []
      const replies = await connection.send([MULTI, ...counted, ...own, ...counted, EXEC])
      for (const [index, command] of commands.entries()) {
        bill.command(labelOf(command, replies[1 + counted.length + index] ?? null))
      }
      const results = replies.at(-1) ?? null
      if (results instanceof Error) return results
      if (!Array.isArray(results)) return new ReplyError('EXECABORT Transaction discarded')
      if (counted.length > 0) bill.inScript(commandsInside(results[0], results.at(-1), own.length))
      return translated.map(({ answer }, index) => answer(results[counted.length + index] ?? null))
    },
  }
}

/** How a command is run: what is sent for it, and what the replies to that make. */
interface Plan {
  readonly sent: readonly Command[]
  read(replies: readonly Reply[], bill: Bill): Reply | Promise<Reply>
}

// Callers must not be able to make metrics without end.
function labelOf(command: Command, reply: Reply): string {
  return reply instanceof Error && reply.message.startsWith('ERR unknown command') ? 'unknown' : command.name
}
