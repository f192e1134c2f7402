import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import { nextTurn } from '#shared/runtime/clock.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import { startTcpProxy, type TcpProxy } from '#shared/test/tcp-proxy.ts'
import type { Broker, NewTask } from '../broker.ts'
import { createRedisBroker } from './redis.ts'
import { createTcpClient } from './tcp.ts'

const task = (id: string): NewTask => ({
  ...{ id, kind: 'sum', priority: 'normal', fresh: false },
  envelope: encodeEnvelope({ task_id: id, payload: { num1: 1, num2: 2 } }),
})
const hasRedis = Bun.which('redis-server') !== null
if (!hasRedis) console.log('Skipped: replicas need redis-server on the PATH.')

describe.skipIf(!hasRedis)('a primary with one replica that is waited for', () => {
  let primary: RedisServer
  let replica: RedisServer
  let proxy: TcpProxy
  let broker: Broker

  beforeEach(async () => {
    primary = await startRedis({ args: ['--repl-diskless-sync-delay', '0'] })
    replica = await startRedis({ args: ['--replicaof', '127.0.0.1', String(primary.port)] })
    proxy = await startTcpProxy(primary)
    broker = createRedisBroker(
      createTcpClient({ url: `redis://127.0.0.1:${proxy.port}`, commandTimeoutMs: 500, waitReplicas: 1 }),
      { resendAfterMs: [200, 200, 200] },
    )
    while (!(await broker.enqueue([task('before')]).catch(() => null))) await nextTurn()
  }, 30_000)
  afterEach(async () => {
    await broker.close()
    await proxy.close()
    for (const server of [primary, replica]) await server.stop()
  })

  test('what it does not have is not acknowledged, and the reason is told', async () => {
    await replica.kill('SIGSTOP')
    const error = await broker.enqueue([task('refused')]).catch((reason: unknown) => reason)
    expect(String(error)).toBe('StoreUnavailable: 0 of 1 replicas have enqueue.')
  }, 30_000)

  test('a call that is sent again on a new connection, and finds all done, is not acknowledged before the replica has it', async () => {
    await replica.kill('SIGSTOP')
    proxy.loseNextAnswer()
    const error = await broker.enqueue([task('a')]).catch((reason: unknown) => reason)
    expect(String(error)).toBe('StoreUnavailable: 0 of 1 replicas have enqueue.')
    expect((await broker.get(['a']))[0]?.live?.state).toBe('queued')
    await replica.kill('SIGCONT')
    expect(await broker.enqueue([task('a')])).toEqual([{ id: 'a', created: false }])
    const copy = new Redis(replica.url)
    expect(await copy.hexists('tasks:live', 'a')).toBe(1)
    copy.disconnect()
  }, 30_000)

  test('a call that changes nothing writes to the replica, since WAIT looks for what its connection wrote', async () => {
    const copy = new Redis(replica.url)
    const told = async () => Number(/cmdstat_publish:calls=(\d+)/.exec(await copy.info('commandstats'))?.[1] ?? 0)
    const before = await told()
    expect(await broker.enqueue([task('before')])).toEqual([{ id: 'before', created: false }])
    expect(await told()).toBe(before + 1)
    copy.disconnect()
  }, 30_000)
})
