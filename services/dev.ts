/** Everything in one process: creator, manager and all workers, on the store that the environment names (a SQLite file when it names none). */
import { openBroker } from '#shared/broker/open.ts'
import { type Config, loadConfig } from '#shared/runtime/config.ts'
import { openKeyring } from '#shared/runtime/keyfile.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { aborted, runMain } from '#shared/runtime/process.ts'
import type { Server } from '#shared/runtime/serve.ts'
import { warnOfUnknownSettings } from '#shared/runtime/unknown-settings.ts'
import { startCreator } from './creator/main.ts'
import { noteKinds } from './kinds.ts'
import { startManager } from './manager/main.ts'
import { createImplementations } from './workers/implementations.ts'
import { chosen, startWorker } from './workers/start.ts'

await runMain('tasker', async (signal) => {
  // On a terminal, people read; warnings are enough beside the greeting.
  const config = loadConfig({ ...process.env, LOG_LEVEL: process.env['LOG_LEVEL'] || 'warn' })
  const log = createLogger(config.logLevel)
  warnOfUnknownSettings(process.env, log)
  const implementations = chosen(config, createImplementations(config))
  const keyring = await openKeyring(config.secret)
  const broker = await openBroker(config.store, { partitions: config.partitions, log })
  const servers: Server[] = []
  try {
    const creator = await startCreator(config, { broker, log, signal, keyring })
    servers.push(creator)
    const manager = await startManager(config, { broker, log, signal })
    servers.push(manager)
    void noteKinds({ broker, log, signal })
    console.log(greeting(config, { creator: creator.url, manager: manager.url }))
    await Promise.all([startWorker(config, { broker, log, signal, implementations, keyring }), aborted(signal)])
  } finally {
    // Together: each may take its time for the requests under way.
    await Promise.all(servers.map((server) => server.stop()))
    await broker.close()
  }
})

function greeting(config: Config, { creator, manager }: { creator: string; manager: string }): string {
  const { store } = config
  const where = store.type === 'sqlite' ? `SQLite, ${store.path}` : store.type === 'redis' ? 'Redis' : 'Redis over REST'
  return `Tasker runs. Ctrl-C stops it; tasks are kept (${where}).

  creator  ${creator}
  manager  ${manager}

Try it:

  curl -s -X POST ${creator}/sum -H 'Content-Type: application/json' -d '{"payload": {"num1": 5, "num2": 7}}'
  curl -s '${manager}/task/TASK_ID?wait=5'
`
}
