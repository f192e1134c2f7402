import { readFileSync } from 'node:fs'
import { ConfigError } from './config.ts'

/**
 * Runs an entry point: its signal aborts on SIGTERM, SIGINT or SIGHUP, and a second SIGTERM or SIGINT ends the process at once. What the entry point throws
 * is told in one line on stderr (each setting that is wrong on its own), and the exit code is 1. The one place that handles process signals.
 */
export async function runMain(name: string, main: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController()
  const stop = () => {
    if (controller.signal.aborted) process.exit(1)
    controller.abort()
  }
  // A terminal that closes may send it twice, and systemd right after SIGTERM: that is no second request. Whoever started this with nohup wants none of it.
  const hangUp = () => controller.abort()
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  if (!ignoresHangUp()) process.on('SIGHUP', hangUp)
  try {
    await main(controller.signal)
  } catch (error) {
    for (const line of messageOf(error).split('\n')) console.error(`${name}: ${line}`)
    process.exitCode = 1
  } finally {
    process.off('SIGTERM', stop)
    process.off('SIGINT', stop)
    process.off('SIGHUP', hangUp)
  }
}

/** Ends the process with code 1 within so many ms, whatever is still under way: after an error that nobody foresaw, whoever runs it must start it again. */
export function endWithin(ms: number): void {
  process.exitCode = 1
  setTimeout(() => process.exit(1), ms).unref()
}

/** Resolves when the signal aborts, at once when it has. */
export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}

/** Whether SIGHUP was ignored when the process started, as nohup has it; only Linux tells. */
function ignoresHangUp(): boolean {
  try {
    const [, mask = '0'] = /^SigIgn:\s*(\w+)$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
    return (BigInt(`0x${mask}`) & 1n) === 1n
  } catch {
    return false
  }
}

function messageOf(error: unknown): string {
  if (error instanceof ConfigError || !(error instanceof Error))
    return String(error instanceof Error ? error.message : error)
  return error.message.split('\n')[0] ?? ''
}
