import { announce, requireLock, runService, type ServiceDeps } from '#services/service.ts'
import { contracts } from '#services/workers/contracts.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createDoors } from '#shared/http/doors.ts'
import { type Config, managerUrlOf } from '#shared/runtime/config.ts'
import { openKeyring } from '#shared/runtime/keyfile.ts'
import type { Server } from '#shared/runtime/serve.ts'
import { listen } from '../listen.ts'
import { createApp } from './app.ts'

/** Starts the creator on its port, over a store that the caller opens and closes. */
export async function startCreator(config: Config, { broker, log, keyring }: ServiceDeps): Promise<Server> {
  requireLock(config)
  const managerUrl = managerUrlOf(config)
  const app = createApp({
    broker,
    contracts,
    keyring: keyring === undefined ? await openKeyring(config.secret) : keyring,
    managerUrl,
    managerPort: config.managerPort,
    log,
    auth: await createAuth(config.tokens),
    doors: createDoors(config.doors),
  })
  const { host, creatorPort: port } = config
  const server = await listen({ fetch: app.fetch, host, port, setting: 'CREATOR_PORT' })
  if (managerUrl === null) {
    const warning =
      'MANAGER_URL is not set: callers are sent to MANAGER_PORT of the host by which they call this service.'
    log.warn(`${warning} Behind a proxy set MANAGER_URL.`, { service: 'creator', manager_port: config.managerPort })
  }
  announce('creator', server, config, log)
  return server
}

if (import.meta.main) await runService('creator', startCreator)
