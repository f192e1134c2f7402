import { createHash } from 'node:crypto'
import type { Argument, Command } from './command.ts'
import { type Reply, ReplyError } from './reply.ts'

/** A command as Redis can take it, and its reply as the caller expects it. */
export interface Translated {
  readonly command: Command
  answer(reply: Reply): Reply
}

/** Translates the scripts that only Upstash understands, and their hashes. */
export interface Scripts {
  translate(command: Command): Translated
}

// A hash that was forgotten is answered with NOSCRIPT, whereupon the caller sends the script again.
const MAX_REMEMBERED = 10_000

/**
 * Scripts may begin with `#!lua flags=allow-key-locking`, which Redis refuses as an unknown flag: it is taken out, the line stays. Callers
 * name a script by the hash of the text that they sent, so the hashes of changed texts are remembered.
 */
export function createScripts(): Scripts {
  const sent = new Map<string, string>()

  const remember = (original: string, stripped: string) => {
    sent.delete(original)
    sent.set(original, stripped)
    const oldest = sent.size > MAX_REMEMBERED ? sent.keys().next().value : undefined
    if (oldest !== undefined) sent.delete(oldest)
  }
  const known = (sha: Argument): Argument => sent.get(String(sha).toLowerCase()) ?? sha

  const translateText = (command: Command, at: number, answer: (reply: Reply, sha: string) => Reply): Translated => {
    const original = command.args[at]
    const text = original === undefined ? null : withoutKeyLocking(original)
    if (original === undefined || text === null) return unchanged(command)
    const [originalSha, sha] = [sha1(original), sha1(text)]
    remember(originalSha, sha)
    return {
      command: { name: command.name, args: command.args.with(at, text) },
      answer: (reply) => answer(withSha(reply, sha, originalSha), originalSha),
    }
  }

  return {
    translate(command) {
      const { name, args } = command
      if (name === 'EVAL' || name === 'EVAL_RO') return translateText(command, 0, (reply) => reply)
      if (name === 'EVALSHA' || name === 'EVALSHA_RO') {
        const [sha, ...rest] = args
        return sha === undefined ? unchanged(command) : unchanged({ name, args: [known(sha), ...rest] })
      }
      if (name !== 'SCRIPT') return unchanged(command)
      const subcommand = String(args[0]).toUpperCase()
      if (subcommand === 'LOAD' && args.length === 2) {
        return translateText(command, 1, (reply, sha) => (reply instanceof Error ? reply : Buffer.from(sha)))
      }
      if (subcommand !== 'EXISTS') return unchanged(command)
      return unchanged({ name, args: args.map((arg, index) => (index === 0 ? arg : known(arg))) })
    },
  }
}

/** True for commands that run other commands. */
export function runsCommands(name: string): boolean {
  return /^(EVAL|EVALSHA|FCALL)(_RO)?$/.test(name)
}

function unchanged(command: Command): Translated {
  return { command, answer: (reply) => reply }
}

function withoutKeyLocking(script: Argument): string | null {
  const text = String(script)
  const line = /^#!lua[^\n]*/.exec(text)?.[0] ?? ''
  const flags = /\sflags=(\S*)/.exec(line)?.[1]?.split(',')
  if (!flags?.includes('allow-key-locking')) return null
  const others = flags.filter((flag) => flag !== 'allow-key-locking')
  // An empty line in its place: errors name the line that the caller knows.
  const first = others.length > 0 ? line.replace(/flags=\S*/, `flags=${others.join(',')}`) : ''
  return first + text.slice(line.length)
}

function withSha(reply: Reply, sha: string, originalSha: string): Reply {
  return reply instanceof Error ? new ReplyError(reply.message.replaceAll(sha, originalSha)) : reply
}

function sha1(text: Argument): string {
  return createHash('sha1').update(text).digest('hex')
}
