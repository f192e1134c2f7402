import { createHash } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { Log } from '#shared/runtime/log.ts'
import { rulesFor } from './refused.ts'

/**
 * Makes a connection the callers': it logs in as a user of Redis that may do what callers may. What is refused to a
 * request is refused to its scripts then, too, which no look at the request could see to. The user is made each time,
 * as a Redis that was started again has forgotten it. Where Redis lets nobody be made, the connection keeps the rights
 * that it has, and the log says so.
 *
 * @throws an error of the client when the connection is lost meanwhile.
 */
export async function restrict(redis: Redis, token: string, log: Log): Promise<void> {
  // The same for every endpoint with this token, so that one does not lock out the other.
  const password = sha256(`tasker-rest\n${token}`)
  const user = `tasker-rest-${sha256(password).slice(0, 12)}`
  try {
    const known = (await redis.call('COMMAND', 'LIST')) as string[]
    await redis.call('ACL', 'SETUSER', user, 'reset', 'on', `#${sha256(password)}`, '~*', '&*', ...rulesFor(known))
    await redis.call('AUTH', user, password)
  } catch (error) {
    if (!(error instanceof Error) || error.name !== 'ReplyError') throw error
    const risk =
      'CALLERS MAY DO WHATEVER THE USER IN REDIS_URL MAY, in scripts: Redis did not let a user be made for them.'
    const what = 'Allow ACL SETUSER and COMMAND LIST, or name a user with fewer rights.'
    log.warn(`${risk} ${what}`, { service: 'rest', reason: error.message })
  }
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
