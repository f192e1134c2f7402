import { expect, test } from 'bun:test'
import type { Claimed } from '#shared/broker/broker.ts'
import type { RedisClient } from '#shared/broker/redis/client.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { type Script, scripts } from '#shared/broker/redis/scripts.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { manualClock } from '../manual-clock.ts'
import { startRedis } from '../redis-server.ts'
import { check } from './check.ts'
import { newSightings, startMonitor } from './monitor.ts'
import { EMPTY_DUMP, type Recording } from './recording.ts'

const LEASE_MS = 1_000

/** Settles two tasks, one of them by a worker whose lease was lost, and gives what was seen of it. */
async function lateCommit(settle: Script): Promise<Recording> {
  const redis = await startRedis()
  const sightings = newSightings()
  const monitor = await startMonitor(redis.port, () => sightings)
  const tcp = createTcpClient({ url: redis.url })
  const client: RedisClient = {
    ...tcp,
    eval: (script, keys, args) => tcp.eval(script.name === 'settle' ? settle : script, keys, args),
  }
  const clock = manualClock()
  const broker = createRedisBroker(client, { now: clock.now })
  const claim = async () => {
    const { tasks } = await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: LEASE_MS, takeBack: true })
    return tasks[0] as Claimed
  }
  const end = ({ id, kind, token }: Claimed) =>
    broker.settle([
      {
        type: 'end',
        id,
        kind,
        token,
        state: 'succeeded',
        record: `{"result":"5","status_code":200}`,
        endedAt: 0,
        expiresAt: null,
      },
    ])
  const create = (id: string) =>
    broker.enqueue([
      { id, kind: 'sum', priority: 'normal', envelope: encodeEnvelope({ task_id: id, payload: { num1: 2, num2: 3 } }) },
    ])

  await create('in time')
  await end(await claim())
  await create('late')
  const late = await claim()
  clock.advance(LEASE_MS)
  const holder = await claim()
  await end(late)
  await end(holder)
  // Redis tells of a call in the turn in which it answers it: one more answer, and all has been told.
  await broker.ping()
  await broker.close()
  await redis.stop()
  await monitor.ended
  return {
    ...{ acknowledged: [], cancellations: [], seen: [], ran: [], end: EMPTY_DUMP },
    lives: [{ start: EMPTY_DUMP, ...sightings, safeUntil: 0, crashedAt: null }],
  }
}

test('no late worker commits: both commits were made by who held the lease', async () => {
  const verdict = check(await lateCommit(scripts.settle))
  expect(verdict).toMatchObject({ violations: [], leasesChecked: 2 })
})

test('a settle script that does not look at the token is caught', async () => {
  const text = scripts.settle.text.replaceAll('h.token == head.token', 'true')
  expect(text).not.toBe(scripts.settle.text)
  const sha = new Bun.CryptoHasher('sha1').update(text).digest('hex')
  const { violations } = check(await lateCommit({ ...scripts.settle, text, sha: async () => sha }))
  expect(violations).toMatchObject([{ rule: 'a task was committed without its lease', id: 'late' }])
})
