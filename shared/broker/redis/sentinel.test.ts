import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import sum from '#services/workers/sum/worker.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { endProcesses, freePort, startProcess, type TestProcess } from '#shared/test/process.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createRedisBroker } from './redis.ts'
import { createTcpClient } from './tcp.ts'

const NAME = 'tasks'
const hasRedis = Bun.which('redis-server') !== null
if (!hasRedis) console.log('Skipped: the fail-over needs redis-server on the PATH, for replicas and sentinels.')

/** One primary, two replicas and three sentinels, all real processes. */
describe.skipIf(!hasRedis)('a fail-over of Redis Sentinel under load', () => {
  const dir = mkdtempSync(join(tmpdir(), 'tasker-sentinel-'))
  const sentinels: { port: number; process: TestProcess }[] = []
  const servers: RedisServer[] = []
  let url = ''

  beforeAll(async () => {
    const primary = await startRedis()
    servers.push(primary)
    for (let i = 0; i < 2; i++) {
      servers.push(await startRedis({ args: ['--replicaof', '127.0.0.1', String(primary.port)] }))
    }
    for (let i = 0; i < 3; i++) {
      const port = await freePort()
      const file = join(dir, `sentinel-${i}.conf`)
      writeFileSync(
        file,
        [
          ...[`port ${port}`, 'bind 127.0.0.1', `dir ${dir}`, `sentinel monitor ${NAME} 127.0.0.1 ${primary.port} 2`],
          ...[`sentinel down-after-milliseconds ${NAME} 1500`, `sentinel failover-timeout ${NAME} 6000`],
        ].join('\n'),
      )
      sentinels.push({ port, process: startProcess(['redis-server', file, '--sentinel'], {}) })
    }
    await Promise.all(sentinels.map(({ process }) => process.prints('+monitor')))
    // Each must know the replicas and the other sentinels before the primary may go.
    for (const { port } of sentinels) await untilKnown(port)
    url = `redis+sentinel://${sentinels.map(({ port }) => `127.0.0.1:${port}`).join(',')}/${NAME}`
  }, 120_000)

  afterAll(async () => {
    await endProcesses()
    for (const server of servers) await server.stop()
    rmSync(dir, { recursive: true })
  })

  async function untilKnown(port: number): Promise<void> {
    const sentinel = new Redis({ host: '127.0.0.1', port, lazyConnect: true, retryStrategy: () => 50 })
    sentinel.on('error', () => undefined)
    for (;;) {
      const reply = await sentinel.call('SENTINEL', 'MASTER', NAME).catch(() => [])
      const fields = reply as string[]
      const of = (name: string) => Number(fields[fields.indexOf(name) + 1])
      if (of('num-slaves') === 2 && of('num-other-sentinels') === 2) break
    }
    sentinel.disconnect()
  }

  test('services and workers follow by themselves, and nothing that was acknowledged is lost', async () => {
    const broker = createRedisBroker(createTcpClient({ url, waitReplicas: 1 }))
    const stop = new AbortController()
    const worker = createWorker({
      ...{ broker, keyring: null, log: silentLog, implementations: [sum], leaseMs: 2_000, pollMs: 200 },
    })
    const loop = worker.loop(stop.signal)
    const acknowledged: string[] = []
    let refused = 0
    let afterwards = 0
    let failedOver = false

    async function createSome(): Promise<void> {
      const ids = Array.from({ length: 20 }, () => crypto.randomUUID())
      try {
        await broker.enqueue(
          ids.map((id) => ({
            ...{ id, kind: 'sum', priority: 'normal', fresh: true },
            envelope: encodeEnvelope({ task_id: id, kind: 'sum', payload: { num1: 1, num2: 2 } }),
          })),
        )
        acknowledged.push(...ids)
        if (failedOver) afterwards += ids.length
      } catch (error) {
        expect(error).toBeInstanceOf(StoreUnavailable)
        refused++
      }
    }

    while (acknowledged.length < 1_000) await createSome()
    await servers[0]?.kill('SIGKILL')
    failedOver = true
    while (afterwards < 1_000) await createSome()

    let open = acknowledged
    while (open.length > 0) {
      const stored = await broker.get(open).catch(() => null)
      open = open.filter((_, i) => !stored?.[i]?.record)
      const lost = stored?.filter((one) => one === null).length ?? 0
      expect(lost).toBe(0)
    }
    console.log(
      `a fail-over under load: ${acknowledged.length} acknowledged, 0 lost, ${refused} calls refused meanwhile`,
    )
    expect(refused).toBeGreaterThan(0)
    stop.abort()
    await loop
    await broker.close()
  }, 180_000)
})
