import { ConfigError } from '#shared/runtime/config.ts'

/** The names that a reader of settings asks an environment for. */
export function settingsOf(load: (env: Record<string, string>) => unknown): ReadonlySet<string> {
  const asked = new Set<string>()
  const env = new Proxy<Record<string, string>>({}, { get: (_, name) => void asked.add(String(name)) })
  try {
    load(env)
  } catch (error) {
    // Some are needed: they were asked for all the same.
    if (!(error instanceof ConfigError)) throw error
  }
  return asked
}
