/**
 * One process of a run: a creator, a manager, a worker, or (`all`) everything in one. The same parts as the real entry points, with the kinds
 * of this folder and with a clock that is moved from outside.
 */
import { createApp as createCreator } from '#services/creator/app.ts'
import { createApp as createManager } from '#services/manager/app.ts'
import { openBroker } from '#shared/broker/open.ts'
import { loadConfig, managerUrlOf } from '#shared/runtime/config.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { aborted, runMain } from '#shared/runtime/process.ts'
import { serve } from '#shared/runtime/serve.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { fileClock } from './clock.ts'
import { noteEnds } from './ends.ts'
import { chaosImplementations } from './handlers.ts'
import { chaosContracts } from './kinds.ts'

const role = process.argv[2] ?? 'all'
const has = (part: string) => role === 'all' || role === part

await runMain(role, async (signal) => {
  const config = loadConfig(process.env)
  const log = createLogger(config.logLevel)
  const clock = fileClock(process.env['CHAOS_CLOCK'])
  const store = await openBroker(config.store, { partitions: config.partitions, log, now: clock.now })
  const broker = noteEnds(store, process.env['CHAOS_ENDS'] ?? '/dev/null')
  const servers = []
  const { host } = config
  const managerUrl = managerUrlOf(config)
  const shared = { broker, log, contracts: chaosContracts, auth: null }
  if (has('creator')) {
    const app = createCreator({ ...shared, keyring: null, managerUrl, now: clock.now })
    servers.push(await serve({ fetch: app.fetch, host, port: config.creatorPort }))
  }
  if (has('manager')) {
    const app = createManager({ ...shared, clock, signal, pollMs: config.waitPollMs })
    servers.push(await serve({ fetch: app.fetch, host, port: config.managerPort }))
  }
  log.info('Ready.', { role })
  if (has('worker')) {
    const worker = createWorker({
      ...{ broker, log, clock, keyring: null },
      implementations: chaosImplementations(process.env['CHAOS_STEPS'] ?? '/dev/null').filter(
        ({ contract }) => contract.kind !== process.env['CHAOS_EXCEPT'],
      ),
      leaseMs: config.leaseMs,
      pollMs: config.workerPollMs,
      sweepMs: config.workerSweepMs,
      graceMs: config.workerGraceMs,
    })
    await worker.loop(signal)
  }
  await aborted(signal)
  for (const server of servers) await server.stop()
  await broker.close()
})
