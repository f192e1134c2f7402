import { StoreUnavailable } from '#shared/task/errors.ts'
import type { RedisClient } from './client.ts'
import { partitionsKey } from './keys.ts'
import { scripts } from './scripts.ts'

/**
 * A client that refuses every script of a process whose number of partitions is not that of the store: its tasks would
 * be where nobody looks. The number is asked for once, before the first script; after a refusal, again.
 */
export function agreeing(
  client: RedisClient,
  { partitions, namespace = '' }: { partitions: number; namespace?: string },
): RedisClient {
  let isAgreed = false
  let asking: Promise<void> | null = null

  async function ask(): Promise<void> {
    try {
      const known = String(await client.eval(scripts.open, [partitionsKey(namespace)], [partitions]))
      if (known !== String(partitions)) throw disagreement(known, partitions)
      isAgreed = true
    } finally {
      asking = null
    }
  }

  async function agree(): Promise<void> {
    asking ??= ask()
    await asking
  }

  return {
    ...client,
    eval: (script, keys, args) =>
      isAgreed ? client.eval(script, keys, args) : agree().then(() => client.eval(script, keys, args)),
    async check() {
      const conditions = await client.check()
      if (!isAgreed) await agree()
      return conditions
    },
  }
}

function disagreement(known: string, partitions: number): StoreUnavailable {
  // Whatever else stands there is not told.
  const number = /^\d{1,4}$/.test(known) ? known : null
  const message =
    number === null
      ? `The key of the number of partitions in Redis holds no number, and this process has ${partitions}: delete it, see docs/protocol.md.`
      : `The store has ${number} partitions, and this process has ${partitions}: set TASKER_PARTITIONS to ${number}, as in all other processes.`
  return new StoreUnavailable(message, { refused: true })
}
