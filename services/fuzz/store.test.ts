/** What foreign programs may put into the store neither stops, blocks nor breaks a worker or the manager. */
import { afterAll, beforeAll, expect, test } from 'bun:test'
import fc from 'fast-check'
import { Redis } from 'ioredis'
import type { Broker } from '#shared/broker/broker.ts'
import { sweepOnce } from '#shared/broker/expire.ts'
import { createRedisBroker } from '#shared/broker/redis/redis.ts'
import { createTcpClient } from '#shared/broker/redis/tcp.ts'
import { nextTurn } from '#shared/runtime/clock.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { PRIORITIES } from '#shared/task/task.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { randomNamespace, redisTestUrl } from '#shared/test/stores.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createApp as createManager } from '../manager/app.ts'
import { createChat } from '../workers/chat/worker.ts'
import { contracts } from '../workers/contracts.ts'
import conversation from '../workers/conversation/worker.ts'
import sequence from '../workers/sequence/worker.ts'
import sum from '../workers/sum/worker.ts'
import { bounded, bytesOf, fieldsText, jsonText, oddText, TIMEOUT_MS } from './arbitrary.ts'
import { queueBytes, recordBytes } from './rubbish.ts'

const KINDS = Object.keys(contracts)
let raw: Redis
beforeAll(() => {
  raw = new Redis(redisTestUrl())
})
afterAll(() => {
  raw.disconnect()
})

/** A store of its own, and all that works on it. */
async function open() {
  const namespace = randomNamespace()
  const clock: ManualClock = manualClock()
  const broker: Broker = createRedisBroker(createTcpClient({ url: redisTestUrl() }), { namespace, now: clock.now })
  const errors: string[] = []
  const log = createLogger('error', (line) => errors.push(line))
  const keyring = await createKeyring([newKey()])
  const chat = createChat({
    ...{ baseUrl: 'http://provider/v1', model: 'm' },
    fetch: Object.assign(async () => Response.json({ error: { message: 'No.' } }, { status: 400 }), fetch),
  })
  const worker = createWorker({ broker, log, keyring, clock, implementations: [sum, sequence, conversation, chat] })
  const manager = createManager({ broker, contracts, log, auth: null, clock: { now: clock.now, sleep: nextTurn } })
  return { namespace, clock, broker, errors, worker, manager }
}

/** Runs what is there, over every lease and delay, until nothing is left. */
async function settle({ worker, clock, broker }: Awaited<ReturnType<typeof open>>): Promise<void> {
  for (let turn = 0; turn < 200; turn++) {
    await worker.drain()
    await sweepOnce({ broker, contracts, now: clock.now }, 1_000)
    const stats = await broker.stats(KINDS)
    if (stats.every(({ queued, running, waiting, delayed }) => queued + running + waiting + delayed === 0)) return
    clock.advance(3_600_000)
  }
  throw new Error(`It did not come to an end: ${JSON.stringify(await broker.stats(KINDS))}`)
}

const suffix = { high: ':high', normal: '', low: ':low' }

test(
  'whatever is pushed to a queue ends: recorded, or kept aside',
  async () => {
    const scene = await open()
    const pushes = fc.array(
      fc.record({
        kind: fc.constantFrom(...KINDS),
        priority: fc.constantFrom(...PRIORITIES),
        bytes: queueBytes,
      }),
      { minLength: 1, maxLength: 10 },
    )
    await fc.assert(
      fc.asyncProperty(pushes, async (pushed) => {
        for (const { kind, priority, bytes } of pushed) {
          await raw.lpush(`${scene.namespace}${kind}_task_queue${suffix[priority]}`, Buffer.from(bytes))
        }
        await settle(scene)
        expect(scene.errors).toEqual([])
        for (const path of ['/tasks?limit=200', '/stats']) {
          expect((await scene.manager.request(path)).status).toBe(200)
        }
      }),
      bounded(0.5),
    )
    // Else nothing of it was understood.
    const ended = (await scene.broker.stats(KINDS)).map(({ succeeded, failed, broken }) => [succeeded, failed, broken])
    expect(ended.every((counts) => counts.slice(1).every((count) => count > 0))).toBe(true)
    expect(ended[0]?.[0]).toBeGreaterThan(0)
    await scene.broker.close()
  },
  TIMEOUT_MS,
)

test(
  'whatever is written as a final record can be read, listed, tried again and deleted',
  async () => {
    const scene = await open()
    const id = fc.oneof(
      fc.constantFrom('live', 'live.0', 'root', 'root.0', 'root.0.0'),
      oddText.filter((text) => text !== ''),
    )
    const asks = fc.record({
      id,
      bytes: recordBytes,
      live: fc.boolean(),
      actions: fc.shuffledSubarray([
        'GET',
        'wait',
        'text',
        'children',
        'list',
        'stats',
        'retry',
        'cancel',
        'sweep',
        'DELETE',
      ]),
    })
    await fc.assert(
      fc.asyncProperty(asks, async ({ id: given, bytes, live, actions }) => {
        const { broker, manager, namespace, clock } = scene
        if (live) {
          const envelope = `{"task_id":${JSON.stringify(given)},"v":1,"kind":"sum","payload":{"num1":1,"num2":2}}`
          await broker.enqueue([{ id: given, kind: 'sum', priority: 'normal', envelope }])
        }
        await raw.hset(`${namespace}tasks`, given, Buffer.from(bytes))
        const at = `/task/${encodeURIComponent(given.toWellFormed())}`
        const requests: Record<string, () => Response | Promise<Response>> = {
          GET: () => manager.request(at),
          wait: () => manager.request(`${at}?wait=1`),
          text: () => manager.request(at, { headers: { Accept: 'text/plain' } }),
          children: () => manager.request(`/tasks?parent=${encodeURIComponent(given.toWellFormed())}`),
          list: () => manager.request('/tasks'),
          stats: () => manager.request('/stats'),
          retry: () => manager.request(`${at}/retry`, { method: 'POST' }),
          cancel: () => manager.request(`${at}/cancel`, { method: 'POST' }),
          DELETE: () => manager.request(at, { method: 'DELETE' }),
        }
        for (const action of actions) {
          if (action === 'sweep') await sweepOnce({ broker, contracts, now: clock.now }, 100)
          const response = await requests[action]?.()
          // The plain form answers with the status of the task.
          expect(scene.errors).toEqual([])
          if (response && action !== 'text') expect([action, response.status < 500]).toEqual([action, true])
          await response?.text()
        }
        expect(scene.errors).toEqual([])
      }),
      bounded(),
    )
    await settle(scene)
    await scene.broker.close()
  },
  TIMEOUT_MS,
)

test(
  'the scripts take whatever ids, kinds and tokens there are',
  async () => {
    const { broker } = await open()
    const text = oddText.filter((one) => one !== '')
    const kind = fc.oneof(fc.constantFrom(...KINDS), fc.constantFrom('nope', '__proto__', 'x'.repeat(500), 'ünï'))
    const token = fc.oneof(fc.constantFrom('-', '0', 'x'.repeat(300)), fc.uuid())
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(text, { minLength: 1, maxLength: 5 }),
        kind,
        token,
        fc.nat(),
        async (ids, of, lease, ms) => {
          const tasks = ids.map((id) => ({
            id,
            kind: of,
            priority: 'normal' as const,
            envelope: JSON.stringify({ task_id: id, v: 1, payload: null }),
          }))
          await broker.enqueue(tasks)
          const claim = await broker.claim({ kinds: [of], limit: ids.length, leaseMs: ms, takeBack: true })
          const leases = ids.map((id) => ({ id, kind: of, token: lease }))
          expect((await broker.extend(leases, ms)).lost.toSorted()).toEqual(ids.toSorted())
          const record = '{"result":"","status_code":200}'
          const end = { type: 'end', state: 'succeeded', record, endedAt: 0, expiresAt: null } as const
          expect((await broker.settle(leases.map((one) => ({ ...one, ...end })))).refused.toSorted()).toEqual(
            ids.toSorted(),
          )
          // Ids that the protocol allows come back as they went in, and their tasks end; others may be kept aside.
          const allowed = ids.filter(isAllowed)
          const claimed = claim.tasks.map((task) => task.id)
          expect(ids).toEqual(expect.arrayContaining(claimed))
          expect(claimed).toEqual(expect.arrayContaining(allowed))
          expect(
            (await broker.settle(claim.tasks.map((task) => ({ id: task.id, kind: of, token: task.token, ...end }))))
              .refused,
          ).toEqual([])
          expect((await broker.get(allowed)).map((stored) => stored?.record)).toEqual(allowed.map(() => record))
          await broker.remove(
            ids.map((id) => ({ id, ended: { kind: of, state: 'succeeded', at: 0, expiresAt: null } })),
          )
          expect(await broker.get(claimed)).toEqual(claimed.map(() => null))
        },
      ),
      bounded(),
    )
    await broker.close()
  },
  TIMEOUT_MS,
)

test(
  'whatever is published neither wakes nor stops anybody',
  async () => {
    const { namespace, broker } = await open()
    const woken: string[] = []
    const seen: unknown[] = []
    const subscriptions = [
      await broker.subscribe(['sum'], (kind) => woken.push(kind)),
      await broker.watch((event) => seen.push(event)),
    ]
    woken.length = 0
    const message = fc.oneof(
      bytesOf(jsonText),
      bytesOf(
        fieldsText(['type', 'ids', 'id', 'chunk', 'sum'], fc.oneof(jsonText, fc.constantFrom('"end"', '"chunk"'))),
      ),
    )
    await fc.assert(
      fc.asyncProperty(fc.constantFrom('tasks:wake', 'tasks:events'), message, async (channel, bytes) => {
        await raw.publish(namespace + channel, Buffer.from(bytes))
      }),
      bounded(),
    )
    const heard = Promise.withResolvers<void>()
    const last = await broker.watch(
      (event) => event.type === 'end' && event.tasks.some(({ id }) => id === 'last') && heard.resolve(),
    )
    await raw.publish(`${namespace}tasks:events`, '{"type":"end","ids":["last"]}')
    await heard.promise
    for (const event of seen) expect(event).toMatchObject({ type: expect.stringMatching(/^(end|chunk)$/) })
    for (const subscription of [...subscriptions, last]) await subscription.close()
    await broker.close()
  },
  TIMEOUT_MS,
)

/** As docs/protocol.md has it. */
function isAllowed(id: string): boolean {
  const plain = Array.from(id).every((char) => char >= ' ' && char !== '\u007f')
  return plain && id.isWellFormed() && Buffer.byteLength(id) <= 256
}
