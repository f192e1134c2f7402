import type { Redis } from 'ioredis'
import type { Log } from '#shared/runtime/log.ts'

/**
 * Stops the script that Redis is busy with, if there is one that may still be stopped, and gives the connection back.
 */
export async function killScript(redis: Redis, log: Log): Promise<void> {
  try {
    await redis.connect()
    // A busy Redis knows by which of the two it is to be stopped.
    const said = await Promise.all(
      ['SCRIPT', 'FUNCTION'].map((what) => redis.call(what, 'KILL').then(String, (error: unknown) => messageOf(error))),
    )
    if (said.includes('OK')) {
      log.warn('A script that did not end was stopped.', { service: 'rest' })
    } else if (said.some((text) => text.startsWith('UNKILLABLE'))) {
      const why = 'A SCRIPT DOES NOT END, AND REDIS DOES NOT STOP IT, SINCE IT HAS WRITTEN:'
      log.error(`${why} only SHUTDOWN NOSAVE ends it, which loses what is not on disk.`, { service: 'rest' })
    }
  } catch (error) {
    log.warn('A script does not end, and Redis could not be asked to stop it.', {
      service: 'rest',
      reason: messageOf(error),
    })
  } finally {
    redis.disconnect()
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
