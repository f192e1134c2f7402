import { contracts } from '#services/workers/contracts.ts'
import { createAuth } from '#shared/http/auth.ts'
import { type EdgeModule, misconfigured, openInvocation } from '../edge.ts'
import { createApp } from './app.ts'

const edge: EdgeModule = {
  async fetch(request, env, context) {
    try {
      const { config, broker, log } = await openInvocation(env, context)
      const auth = await createAuth(config.tokens)
      return await createApp({ broker, contracts, log, auth, pollMs: config.waitPollMs }).fetch(request)
    } catch (error) {
      return misconfigured(error)
    }
  },
}

export default edge
