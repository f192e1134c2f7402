import { contracts } from '#services/workers/contracts.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createDoorkeeper, type EdgeModule, misconfigured, openInvocation, refuseOpen } from '../edge.ts'
import { createApp } from './app.ts'

const doorsOf = createDoorkeeper()

const edge: EdgeModule = {
  async fetch(request, env, context) {
    try {
      const invocation = await openInvocation(env, context)
      const { config, broker, log } = invocation
      const refusal = refuseOpen(request, invocation)
      if (refusal) return refusal
      const app = createApp({
        ...{ broker, contracts, log },
        auth: await createAuth(config.tokens),
        doors: doorsOf(config),
        pollMs: config.waitPollMs,
      })
      return await app.fetch(request)
    } catch (error) {
      return misconfigured(error)
    }
  },
}

export default edge
