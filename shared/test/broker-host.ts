/**
 * Holds brokers for the suite, on another runtime than the one that runs the tests: does what comes line by line on stdin, and answers line by
 * line on stdout. `broker-elsewhere.ts` is the other end.
 */
import { createInterface } from 'node:readline'
import type { Broker, Subscription } from '#shared/broker/broker.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { createSqliteBroker } from '#shared/broker/sqlite/sqlite.ts'
import { type Answer, type Call, type Place, pack, unpack } from './broker-lines.ts'

const brokers = new Map<number, { broker: Broker; clock: { ms: number } }>()
const subscriptions = new Map<number, Subscription>()

function open(place: Place, now: () => number): Broker {
  if (place.type === 'sqlite') return createSqliteBroker({ ...place, now })
  const { url, namespace } = place
  return createRedisBroker(createTcpClient({ url }), { namespace, now })
}

function answer(line: Answer): void {
  process.stdout.write(`${pack(line)}\n`)
}

async function run({ id, broker: number, now, method, args }: Call): Promise<unknown> {
  if (method === 'open') {
    const clock = { ms: now }
    brokers.set(number, { broker: open(args[0] as Place, () => clock.ms), clock })
    return
  }
  if (method === 'unsubscribe') return subscriptions.get(Number(args[0]))?.close()
  const opened = brokers.get(number)
  if (!opened) throw new Error(`There is no broker ${number}.`)
  opened.clock.ms = now
  const call = Reflect.get(opened.broker, method) as (...args: unknown[]) => Promise<unknown>
  if (method !== 'subscribe' && method !== 'watch') return call(...args)
  const heard = (...event: unknown[]) => answer({ id, event })
  subscriptions.set(id, (await call(...args, heard)) as Subscription)
}

for await (const line of createInterface({ input: process.stdin })) {
  const call = unpack(line) as Call
  run(call).then(
    (value) => answer({ id: call.id, value }),
    (error: Error) => answer({ id: call.id, error: { name: error.name, message: error.message } }),
  )
}
