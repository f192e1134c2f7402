import { announce, requireLock, runService, type ServiceDeps } from '#services/service.ts'
import { contracts } from '#services/workers/contracts.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createDoors } from '#shared/http/doors.ts'
import type { Config } from '#shared/runtime/config.ts'
import { openKeyring } from '#shared/runtime/keyfile.ts'
import { type Server, serve } from '#shared/runtime/serve.ts'
import { createApp } from './app.ts'

/** Starts the creator on its port, over a store that the caller opens and closes. */
export async function startCreator(config: Config, { broker, log, keyring }: ServiceDeps): Promise<Server> {
  requireLock(config)
  const app = createApp({
    broker,
    contracts,
    keyring: keyring === undefined ? await openKeyring(config.secret) : keyring,
    managerUrl: config.managerUrl,
    log,
    auth: await createAuth(config.tokens),
    doors: createDoors(config.doors),
  })
  const server = await serve({ fetch: app.fetch, host: config.host, port: config.creatorPort })
  announce('creator', server, config, log)
  return server
}

if (import.meta.main) await runService('creator', startCreator)
