/** What the entry points of the two HTTP services share. */
import type { Broker } from '#shared/broker/broker.ts'
import { openBroker } from '#shared/broker/open.ts'
import { type Config, ConfigError, loadConfig } from '#shared/runtime/config.ts'
import { isLoopback } from '#shared/runtime/doors.ts'
import { createLogger, type Log } from '#shared/runtime/log.ts'
import { aborted, runMain } from '#shared/runtime/process.ts'
import type { Keyring } from '#shared/runtime/seal.ts'
import type { Server } from '#shared/runtime/serve.ts'
import { warnOfUnknownSettings } from '#shared/runtime/unknown-settings.ts'
import { noteKinds } from './kinds.ts'

/** What a service that is started needs beside its configuration; several services of one process may share it. */
export interface ServiceDeps {
  broker: Broker
  log: Log
  /** Aborts when the service is to stop. */
  signal: AbortSignal
  /** Left out: the service opens the one that the configuration names. */
  keyring?: Keyring | null
}

/** Runs one service until it is told to stop: then requests under way are answered, and the store is closed. */
export function runService(name: string, start: (config: Config, deps: ServiceDeps) => Promise<Server>): Promise<void> {
  return runMain(name, async (signal) => {
    const config = loadConfig(process.env)
    const log = createLogger(config.logLevel)
    warnOfUnknownSettings(process.env, log)
    const broker = await openBroker(config.store, { partitions: config.partitions, log })
    try {
      const server = await start(config, { broker, log, signal })
      void noteKinds({ broker, log, signal })
      await aborted(signal)
      await server.stop()
      log.info('Stopped.', { service: name })
    } finally {
      await broker.close()
    }
  })
}

/**
 * Does nothing where only this machine can connect, or a token is needed.
 *
 * @throws ConfigError when anybody who reaches the service may use it, and nobody said that this is meant.
 */
export function requireLock({ host, tokens, doors }: Config): void {
  if (isLoopback(host) || tokens.length > 0 || doors.open) return
  throw new ConfigError([
    `HOST=${host} lets anybody who reaches this machine use the service: set TASKER_TOKENS, or HOST=127.0.0.1, or TASKER_OPEN=1 if that is meant.`,
  ])
}

/** Says that a service is up, and loudly when anybody may use it. */
export function announce(service: string, server: Server, config: Config, log: Log): void {
  if (!isLoopback(config.host) && config.tokens.length === 0) {
    const warning =
      'ANYBODY WHO REACHES THIS ADDRESS MAY USE THE SERVICE: TASKER_OPEN is set, and TASKER_TOKENS is not.'
    log.warn(warning, { service, host: config.host })
  }
  log.info('Listening.', { service, url: server.url })
}
