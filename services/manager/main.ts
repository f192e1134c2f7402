import { announce, requireLock, runService, type ServiceDeps } from '#services/service.ts'
import { contracts } from '#services/workers/contracts.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createDoors } from '#shared/http/doors.ts'
import type { Config } from '#shared/runtime/config.ts'
import type { Server } from '#shared/runtime/serve.ts'
import { listen } from '../listen.ts'
import { createApp } from './app.ts'

/** Starts the manager on its port, over a store that the caller opens and closes. */
export async function startManager(config: Config, { broker, log, signal }: ServiceDeps): Promise<Server> {
  requireLock(config)
  const app = createApp({
    ...{ broker, contracts, log, signal },
    auth: await createAuth(config.tokens),
    doors: createDoors(config.doors),
    pollMs: config.waitPollMs,
    maxWaiters: config.doors.maxWaiters,
  })
  const { host, managerPort: port } = config
  const server = await listen({ fetch: app.fetch, host, port, setting: 'MANAGER_PORT' })
  announce('manager', server, config, log)
  return server
}

if (import.meta.main) await runService('manager', startManager)
