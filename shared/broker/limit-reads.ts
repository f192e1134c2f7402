import { StoreUnavailable } from '#shared/task/errors.ts'
import type { Broker } from './broker.ts'

/**
 * Reads of tasks that one service makes at the same time: each may bring a megabyte, and many callers may ask at
 * once.
 */
const MAX_READS = 16

/** Lets reads wait for each other. When the store does not answer one of them, those that wait are not tried. */
export function limitReads(broker: Broker): Broker {
  let underWay = 0
  const waiting: PromiseWithResolvers<void>[] = []
  return {
    ...broker,
    async get(ids, options) {
      if (underWay >= MAX_READS) {
        const turn = Promise.withResolvers<void>()
        waiting.push(turn)
        await turn.promise
      } else underWay++
      try {
        return await broker.get(ids, options)
      } catch (error) {
        if (error instanceof StoreUnavailable) for (const one of waiting.splice(0)) one.reject(error)
        throw error
      } finally {
        const next = waiting.shift()
        if (next) next.resolve()
        else underWay--
      }
    },
  }
}
