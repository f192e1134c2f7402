/** A worker process that meets an error nobody foresaw, while other things would keep it alive for ever. */
import { startWorker } from '#services/workers/start.ts'
import sum from '#services/workers/sum/worker.ts'
import { openBroker } from '#shared/broker/open.ts'
import { loadConfig } from '#shared/runtime/config.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { runMain } from '#shared/runtime/process.ts'

await runMain('worker', async (signal) => {
  const config = loadConfig(process.env)
  const log = createLogger(config.logLevel)
  const broker = await openBroker(config.store, { partitions: 1, log })
  setInterval(() => undefined, 1_000)
  const broken = {
    ...broker,
    async settle(): Promise<never> {
      console.log('Broken.')
      throw new TypeError('nobody foresaw this')
    },
  }
  try {
    await startWorker(config, { broker: broken, log, signal, implementations: [sum], keyring: null })
  } finally {
    // As a server does that waits for its last requests.
    await new Promise(() => undefined)
  }
})
