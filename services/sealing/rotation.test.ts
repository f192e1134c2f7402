/** Keys come and go while tasks are created and run: none is lost, and none fails. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, type Keyring, newKey } from '#shared/runtime/seal.ts'
import { readRecord } from '#shared/task/record.ts'
import { type Durable, durableStores } from '#shared/test/durable-stores.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { type Implementation, implement } from '#shared/worker/implement.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createApp as createCreator } from '../creator/app.ts'
import { chat } from '../workers/chat/contract.ts'
import { contracts } from '../workers/contracts.ts'
import conversation from '../workers/conversation/worker.ts'

const WORKERS = 3
/** Conversations that are created between two changes of keys; each has two children with secrets of their own. */
const EACH = 20

/** A step changes the keys of one process: of the creator, or of a worker. */
type Step = readonly [process: 'creator' | number, keyring: Keyring]

describe.each(durableStores)('on $name', ({ start }) => {
  let durable: Durable
  beforeAll(async () => {
    durable = await start()
  })
  afterAll(() => durable.stop())

  /** Changes keys step by step while tasks are created and run, and then lets all end with the last keys. */
  async function rotate(steps: readonly Step[], first: Keyring) {
    const clock = manualClock()
    const { broker } = await durable.open({ now: clock.now })
    const lines: string[] = []
    const log = createLogger('warn', (line) => lines.push(line))
    const rings = { creator: first, workers: Array.from({ length: WORKERS }, () => first) }
    const implementations = [
      implement(chat, ({ api_key }) => `with ${api_key.length}`),
      conversation,
    ] as Implementation[]
    const ids: string[] = []
    async function create(): Promise<void> {
      const app = createCreator({
        ...{ broker, contracts, keyring: rings.creator, managerUrl: 'http://manager', log, auth: null, now: clock.now },
      })
      const headers = { 'Content-Type': 'application/json' }
      const payload = { topic: 'keys', n: 2, api_key: 'sk-rotated' }
      const posts = Array.from({ length: EACH }, () =>
        app.request('/conversation', { method: 'POST', headers, body: JSON.stringify({ payload }) }),
      )
      for (const response of await Promise.all(posts))
        ids.push(((await response.json()) as { task_id: string }).task_id)
    }
    const run = (maxTasks: number) =>
      Promise.all(
        rings.workers.map((keyring) =>
          createWorker({ broker, clock, log, keyring, implementations }).drain({ maxTasks }),
        ),
      )

    await create()
    for (const [process, keyring] of steps) {
      if (process === 'creator') rings.creator = keyring
      else rings.workers[process] = keyring
      await create()
      // Not all: at each change some wait, some are parked, and some are children.
      await run(EACH / 2)
      clock.advance(1_000)
    }
    const ended = async () => (await broker.get(ids)).map((one) => (one?.record ? readRecord(one.record) : null))
    for (let round = 0; round < 20 && (await ended()).includes(null); round++) {
      await run(1_000)
      clock.advance(300_000)
    }
    const records = await ended()
    await broker.close()
    return { records, waited: lines.filter((line) => line.includes('Tasks wait for a key')), ids }
  }

  const rings = async () => {
    const [old, fresh] = [newKey(), newKey()]
    const ring = (...keys: string[]) => createKeyring(keys)
    return {
      old: await ring(old),
      oldFirst: await ring(old, fresh),
      freshFirst: await ring(fresh, old),
      fresh: await ring(fresh),
    }
  }
  const everywhere = (keyring: Keyring): Step[] => [
    ...Array.from({ length: WORKERS }, (_, i): Step => [i, keyring]),
    ['creator', keyring],
  ]

  test('keys are rotated in the order that is documented: no task waits for one', async () => {
    const { old, oldFirst, freshFirst } = await rings()
    const { records, waited, ids } = await rotate([...everywhere(oldFirst), ...everywhere(freshFirst)], old)
    expect(records.map((record) => [record?.status_code, record?.attempt])).toEqual(ids.map(() => [200, 1]))
    expect(waited).toEqual([])
  })

  test('in any other order tasks wait until the keys are there, and then succeed in their first attempt', async () => {
    const { old, freshFirst, fresh } = await rings()
    // The creator begins with the new key alone, and a worker forgets the old one while its tasks wait.
    const wrong: Step[] = [
      ['creator', fresh],
      [0, fresh],
      [1, freshFirst],
      [2, fresh],
      [2, freshFirst],
      [0, freshFirst],
    ]
    const { records, waited, ids } = await rotate(wrong, old)
    expect(records.map((record) => [record?.status_code, record?.attempt])).toEqual(ids.map(() => [200, 1]))
    expect(waited.length).toBeGreaterThan(0)
  })
})
