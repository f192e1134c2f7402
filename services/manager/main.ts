import { announce, runService, type ServiceDeps } from '#services/service.ts'
import { contracts } from '#services/workers/contracts.ts'
import { createAuth } from '#shared/http/auth.ts'
import type { Config } from '#shared/runtime/config.ts'
import { type Server, serve } from '#shared/runtime/serve.ts'
import { createApp } from './app.ts'

/** Starts the manager on its port, over a store that the caller opens and closes. */
export async function startManager(config: Config, { broker, log, signal }: ServiceDeps): Promise<Server> {
  const auth = await createAuth(config.tokens)
  const app = createApp({ broker, contracts, log, auth, signal, pollMs: config.waitPollMs })
  const server = serve({ fetch: app.fetch, host: config.host, port: config.managerPort })
  announce('manager', server, config, log)
  return server
}

if (import.meta.main) await runService('manager', startManager)
