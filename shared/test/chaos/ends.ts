import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import type { Broker } from '#shared/broker/broker.ts'

/** A broker that writes down in a file by which token each task was ended, once the store has said that it was. */
export function noteEnds(broker: Broker, file: string): Broker {
  return {
    ...broker,
    async settle(outcomes, next) {
      const settled = await broker.settle(outcomes, next)
      const refused = new Set(settled.refused)
      const ends = outcomes.filter(({ type, id }) => type === 'end' && !refused.has(id))
      if (ends.length > 0) appendFileSync(file, ends.map(({ id, token }) => `${id} ${token}\n`).join(''))
      return settled
    },
  }
}

/** Id → the token by which it was ended. Whoever was killed before it could write it down is missing. */
export function readEnds(file: string): ReadonlyMap<string, string> {
  const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : []
  return new Map(lines.map((line) => line.split(' ') as [string, string]).filter(([, token]) => token !== undefined))
}
