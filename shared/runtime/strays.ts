import { type Clock, systemClock } from './clock.ts'
import type { Log } from './log.ts'

/** One line in so many ms at most; what comes between is counted. */
const QUIET_MS = 1_000
const MAX_NAME_CHARS = 100
const MAX_FRAMES = 3
const ADVICE =
  'A handler left an error to nobody: in a promise that it did not await, or a callback that threw. ' +
  'The process goes on. Await every promise, and put work into ctx.step.'

/**
 * Keeps a process that runs handlers going when one of them leaves an error to nobody, the same on Bun, Deno and Node.
 * It does so for as long as the process lives: such an error may come after all tasks have ended. Logged is where it
 * came from; never its message, which may quote a payload.
 */
export function surviveStrays(log: Log): void {
  const tell = createStrayLog(log)
  process.on('unhandledRejection', tell)
  process.on('uncaughtException', (error) => tell(error))
}

/** What tells one such error. */
export function createStrayLog(log: Log, clock: Clock = systemClock): (error: unknown) => void {
  let isQuiet = false
  let more = 0
  const pause = async () => {
    isQuiet = true
    // A stop may have to wait for it: then the count is told.
    await clock.sleep(QUIET_MS)
    isQuiet = false
    if (more === 0) return
    log.error('Handlers left more errors to nobody', { errors: more })
    more = 0
    void pause()
  }
  return (error) => {
    if (isQuiet) {
      more++
      return
    }
    log.error(ADVICE, describe(error))
    void pause()
  }
}

/** An error may be anything, with getters that throw. */
function describe(error: unknown): { type?: string; at?: string[] } {
  try {
    if (!(error instanceof Error)) return {}
    const { name } = error.constructor
    const isName = typeof name === 'string' && name.length <= MAX_NAME_CHARS && /^[\p{L}_$][\p{L}\p{N}_$]*$/u.test(name)
    return { ...(isName ? { type: name } : {}), at: framesOf(error) }
  } catch {
    return {}
  }
}

/** A line of a stack that names a file; what stands behind a `?`, or in a `data:` URL, may be anything. */
const FRAME = /^\s+at (?:.*\()?((?:file:\/\/|node:|ext:|\/|[A-Z]:\\)[^\s()?]+:\d+:\d+)\)?$/

/**
 * The first places of a stack. It begins with the message, lines of which may look like places: where the message has
 * changed since, nothing is told.
 */
function framesOf({ stack, message }: Error): string[] {
  if (typeof stack !== 'string' || typeof message !== 'string') return []
  const begin = stack.indexOf(message)
  const rest = message === '' ? stack.slice(stack.indexOf('\n')) : stack.slice(begin + message.length)
  if (begin < 0 || !rest.startsWith('\n')) return []
  const places = rest.split('\n').map((line) => FRAME.exec(line)?.[1])
  return places.filter((place) => place !== undefined).slice(0, MAX_FRAMES)
}
