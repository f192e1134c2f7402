import { ConfigError } from '#shared/runtime/config.ts'
import { type Server, serve } from '#shared/runtime/serve.ts'

/**
 * Listens on the port that a setting names.
 *
 * @throws ConfigError that names port and setting, when the system does not give the port.
 */
export async function listen(options: Parameters<typeof serve>[0] & { setting: string }): Promise<Server> {
  try {
    return await serve(options)
  } catch (error) {
    const problem = portProblem(error, { ...options, platform: process.platform })
    throw problem === null ? error : new ConfigError([problem])
  }
}

/** What to do about a port that cannot be had; null for any other error. */
export function portProblem(
  error: unknown,
  { host, port, setting, platform }: { host: string; port: number; setting: string; platform: string },
): string | null {
  const code = error instanceof Error && 'code' in error ? error.code : null
  if (code === 'EADDRINUSE') {
    const other = `port ${port} is in use: stop what listens there, or set ${setting} to another port.`
    // Both belong to the AirPlay receiver of macOS, which is on by default.
    if (platform !== 'darwin' || (port !== 5000 && port !== 7000)) return other
    return `${other} On a Mac it is mostly AirPlay: System Settings, General, AirDrop & Handoff, AirPlay Receiver.`
  }
  if (code === 'EACCES') return `port ${port} is not for this user: set ${setting} to a port of 1024 or more.`
  if (code === 'EADDRNOTAVAIL') return `HOST=${host} is no address of this machine: set HOST to one of its own.`
  return null
}
