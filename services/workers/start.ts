/** What the entry points of the workers share. */
import type { Broker } from '#shared/broker/broker.ts'
import { openBroker } from '#shared/broker/open.ts'
import { type Config, ConfigError, loadConfig } from '#shared/runtime/config.ts'
import { openKeyring } from '#shared/runtime/keyfile.ts'
import { createLogger, type Log } from '#shared/runtime/log.ts'
import { endWithin, runMain } from '#shared/runtime/process.ts'
import type { Keyring } from '#shared/runtime/seal.ts'
import { surviveStrays } from '#shared/runtime/strays.ts'
import { warnOfUnknownSettings } from '#shared/runtime/unknown-settings.ts'
import { watchEventLoop } from '#shared/runtime/watchdog.ts'
import type { Implementation } from '#shared/worker/implement.ts'
import { runnable } from '#shared/worker/keys.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { noteKinds } from '../kinds.ts'
import { keepHealthFile } from './health.ts'

/** How long what runs beside a worker may take to stop, when the worker has ended by an error that nobody foresaw. */
const END_MS = 800

/** Runs a worker until the signal aborts, over a store that the caller opens and closes. */
export async function startWorker(
  config: Config,
  deps: {
    broker: Broker
    log: Log
    signal: AbortSignal
    implementations: readonly Implementation[]
    keyring: Keyring | null
  },
): Promise<void> {
  const { broker, log, signal, implementations, keyring } = deps
  const worker = createWorker({
    ...{ broker, log, implementations, keyring },
    concurrency: config.workerConcurrency ?? undefined,
    leaseMs: config.leaseMs,
    pollMs: config.workerPollMs,
    sweepMs: config.workerSweepMs,
    graceMs: config.workerGraceMs,
  })
  const kinds = runnable(implementations, keyring).map(({ contract }) => contract.kind)
  const watchdog = watchEventLoop(config.leaseMs)
  surviveStrays(log)
  log.info('Working.', { kinds })
  try {
    await worker.loop(signal)
  } catch (error) {
    const { stack = '' } = error instanceof Error ? error : new Error(String(error))
    log.error('An error that nobody foresaw ends this worker. Its tasks go to others when their leases end.', { stack })
    endWithin(END_MS)
    throw error
  }
  await watchdog.stop()
  log.info('Stopped.', { kinds })
}

/** Runs one worker process until it is told to stop: running tasks end, or are given back when the grace is over. */
export function runWorker(implementationsOf: (config: Config) => readonly Implementation[]): Promise<void> {
  return runMain('worker', async (signal) => {
    const config = loadConfig(process.env)
    const log = createLogger(config.logLevel)
    warnOfUnknownSettings(process.env, log)
    const implementations = implementationsOf(config)
    const broker = await openBroker(config.store, { partitions: config.partitions, log })
    try {
      const keyring = await openKeyring(config.secret)
      const kinds = implementations.map(({ contract }) => contract.kind)
      void noteKinds({ broker, log, signal }, kinds)
      const { workerHealthFile: file } = config
      await Promise.all([
        startWorker(config, { broker, log, signal, implementations, keyring }),
        file === null ? null : keepHealthFile(file, { broker, log, signal }),
      ])
    } finally {
      await broker.close()
    }
  })
}

/** Those of the implementations that `WORKER_KINDS` names; all when it is not set. */
export function chosen(config: Config, implementations: readonly Implementation[]): readonly Implementation[] {
  const { workerKinds } = config
  if (workerKinds === null) return implementations
  const known = implementations.map(({ contract }) => contract.kind)
  const unknown = workerKinds.filter((kind) => !known.includes(kind))
  if (unknown.length > 0) {
    throw new ConfigError([`WORKER_KINDS names ${unknown.join(', ')}; the kinds are ${known.join(', ')}`])
  }
  return implementations.filter(({ contract }) => workerKinds.includes(contract.kind))
}
