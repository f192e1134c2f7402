import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { Redis } from 'ioredis'
import { chat } from '#services/workers/chat/contract.ts'
import conversation from '#services/workers/conversation/worker.ts'
import sequence from '#services/workers/sequence/worker.ts'
import sum from '#services/workers/sum/worker.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { DEFAULT_RETENTION_S, encodeEnvelope } from '#shared/task/task.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { type RedisServer, startRedis } from '#shared/test/redis-server.ts'
import { type Implementation, implement } from '#shared/worker/implement.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { adopt } from '../adopt.ts'
import type { Broker, TaskEvent } from '../broker.ts'
import { sweepOnce } from '../expire.ts'
import { cancelTree, removeTree } from '../tree.ts'
import { createRedisBroker } from './redis.ts'
import { createTcpClient } from './tcp.ts'

/** A foreign program knows the keys and three commands, and nothing else of Tasker. */
describe('foreign producers and workers', () => {
  let server: RedisServer
  let foreign: Redis
  let broker: Broker
  let clock: ManualClock

  beforeEach(async () => {
    server = await startRedis()
    foreign = new Redis(server.url)
    clock = manualClock()
    broker = createRedisBroker(createTcpClient({ url: server.url }), { now: clock.now })
  })
  afterEach(async () => {
    foreign.disconnect()
    await broker.close()
    await server.stop()
  })

  const drain = async (implementations: Implementation[] = [sum, sequence]) => {
    const keyring = await createKeyring([newKey()])
    return (await createWorker({ broker, clock, implementations, keyring, log: silentLog }).drain()).ran
  }
  const sweep = () => sweepOnce({ broker, contracts: {}, now: clock.now }, 1_000)
  async function stats(kind: string) {
    const [row] = await broker.stats([kind])
    if (!row) throw new Error('No stats')
    return row
  }

  /** A foreign sum worker, as the seed's was: it answers `8.0` for 8. */
  async function foreignSum(): Promise<boolean> {
    const text = await foreign.rpop('sum_task_queue')
    if (text === null) return false
    const { task_id, payload } = JSON.parse(text) as { task_id: string; payload: { num1: number; num2: number } }
    await foreign.hset('tasks', task_id, `{"result":"${(payload.num1 + payload.num2).toFixed(1)}","status_code":200}`)
    return true
  }

  test('a task that is pushed is run, whatever the order and spacing of its envelope', async () => {
    await foreign.lpush('sum_task_queue', '{"task_id":"a1","payload":{"num1":3,"num2":5}}')
    await foreign.lpush(
      'sum_task_queue',
      '{ "payload": {"task_id": "not me", "num1": 1, "num2": 2}, "task_id" : "ünï \\"quoted\\"" }',
    )
    await drain()
    expect(JSON.parse((await foreign.hget('tasks', 'a1')) ?? '')).toMatchObject({ result: '8', status_code: 200 })
    expect(JSON.parse((await foreign.hget('tasks', 'ünï "quoted"')) ?? '')).toMatchObject({ result: '3' })
    expect(await foreign.hlen('tasks')).toBe(2)
  })

  test('a record that a foreign program has overwritten can be deleted, and is not looked for when it would have expired', async () => {
    const ids = ['a1', 'a2']
    for (const id of ids) await foreign.lpush('sum_task_queue', `{"task_id":"${id}","payload":{"num1":3,"num2":5}}`)
    await drain()
    await foreign.hset('tasks', 'a1', '{"result":"9","status_code":200}')
    await removeTree({ broker, contracts: {}, now: clock.now }, 'a1')
    clock.advance(DEFAULT_RETENTION_S * 1_000)
    expect(await sweep()).toEqual({ expired: 1, adopted: 0 })
    expect(await foreign.hlen('tasks')).toBe(0)
    expect(await foreign.exists('tasks:expiry')).toBe(0)
  })

  test('a task whose id was used before is kept for its own time, though its record of then was overwritten', async () => {
    const push = (id: string) => foreign.lpush('sum_task_queue', `{"task_id":"${id}","payload":{"num1":3,"num2":5}}`)
    // Two that end together share the entry that tells when they expire.
    await push('a1')
    await push('a2')
    await drain()
    await foreign.hset('tasks', 'a1', '{"result":"9","status_code":200}')
    await removeTree({ broker, contracts: {}, now: clock.now }, 'a1')
    clock.advance(60_000)
    await push('a1')
    await drain()
    clock.advance(DEFAULT_RETENTION_S * 1_000 - 60_000)
    await sweep()
    expect((await broker.get(['a1']))[0]?.record).toContain('"result":"8"')
    clock.advance(60_000)
    await sweep()
    await sweep()
    expect(await broker.get(['a1', 'a2'])).toEqual([null, null])
    expect(await foreign.exists('tasks:expiry')).toBe(0)
  })

  test('a pushed task is known and held like any other while it runs: it survives its worker', async () => {
    await foreign.lpush('sum_task_queue', '{"task_id":"a1","payload":{"num1":3,"num2":5}}')
    await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 1_000, takeBack: false })
    expect((await broker.get(['a1']))[0]?.live).toMatchObject({ state: 'running', kind: 'sum' })
    clock.advance(1_000)
    await drain()
    expect((await broker.get(['a1']))[0]?.record).toContain('"attempt":2')
  })

  test('large results of foreign workers do not hold up the others: all are taken over', async () => {
    const ids = Array.from({ length: 300 }, (_, i) => `f${i}`)
    const envelope = (id: string) => encodeEnvelope({ task_id: id, kind: 'sum', payload: { num1: 3, num2: 5 } })
    await broker.enqueue(ids.map((id) => ({ id, kind: 'sum', priority: 'normal', envelope: envelope(id) })))
    // Most of them are still at work.
    const ended = ids.filter((_, i) => i % 3 === 0)
    const large = JSON.stringify({ result: 'x'.repeat(950_000), status_code: 200 })
    for (const [i, id] of ended.entries()) {
      await foreign.hset('tasks', id, i % 20 === 0 ? large : '{"result":"8.0","status_code":200}')
    }
    let adopted = 0
    // Each sweep takes over what one call may read.
    for (let sweeps = 0; sweeps < 20 && adopted < ended.length; sweeps++) adopted += (await sweep()).adopted
    expect(adopted).toBe(ended.length)
    expect(await foreign.hlen('tasks:live')).toBe(ids.length - ended.length)
    expect(await stats('sum')).toMatchObject({ succeeded: ended.length })
  })

  test('the same id pushed twice is run once, and never again once it has ended', async () => {
    const envelope = '{"task_id":"a1","payload":{"num1":3,"num2":5}}'
    await foreign.lpush('sum_task_queue', envelope, envelope)
    expect(await drain()).toBe(1)
    await foreign.lpush('sum_task_queue', envelope)
    expect(await drain()).toBe(0)
    expect((await stats('sum')).queued).toBe(0)
  })

  test('a foreign worker takes what the creator queued, and its result is read and counted', async () => {
    const envelope = encodeEnvelope({ task_id: 'b1', kind: 'sum', payload: { num1: 3, num2: 5 } })
    await broker.enqueue([{ id: 'b1', kind: 'sum', priority: 'normal', envelope }])
    expect(await foreignSum()).toBe(true)
    expect((await broker.get(['b1']))[0]?.record).toBe('{"result":"8.0","status_code":200}')
    await sweep()
    const adopted = JSON.parse((await broker.get(['b1']))[0]?.record ?? '')
    expect(adopted).toEqual({ result: '8.0', status_code: 200, kind: 'sum', finished_at: clock.now() })
    expect(await stats('sum')).toMatchObject({ queued: 0, succeeded: 1 })
    expect(await foreign.hlen('tasks:live')).toBe(0)
    clock.advance(7 * 86_400_000)
    await sweep()
    expect(await stats('sum')).toMatchObject({ succeeded: 0 })
    expect(await foreign.keys('*')).toEqual([])
  })

  test('a sequence served by a foreign sum worker ends', async () => {
    const envelope = encodeEnvelope({ task_id: 's1', kind: 'sequence', payload: { n: 10 } })
    await broker.enqueue([{ id: 's1', kind: 'sequence', priority: 'normal', envelope }])
    let sums = 0
    for (let round = 0; round < 10; round++) {
      await drain([sequence])
      while (await foreignSum()) sums++
      await sweep()
    }
    expect(JSON.parse((await broker.get(['s1']))[0]?.record ?? '')).toMatchObject({ result: '55', status_code: 200 })
    expect(sums).toBe(10)
  })

  test('a failure that a foreign worker reports rejects the await of the parent', async () => {
    const envelope = encodeEnvelope({ task_id: 's1', kind: 'sequence', payload: { n: 1 } })
    await broker.enqueue([{ id: 's1', kind: 'sequence', priority: 'normal', envelope }])
    await drain([sequence])
    await foreign.rpop('sum_task_queue')
    await foreign.hset('tasks', 's1.0', '{"result":"Out of numbers","status_code":507}')
    await sweep()
    await drain([sequence])
    expect(JSON.parse((await broker.get(['s1']))[0]?.record ?? '')).toMatchObject({
      status: 'failed',
      status_code: 507,
      result: 'Out of numbers',
    })
  })

  test('a foreign envelope that names a parent does not become its child', async () => {
    const envelope = encodeEnvelope({ task_id: 's1', kind: 'sequence', payload: { n: 1 } })
    await broker.enqueue([{ id: 's1', kind: 'sequence', priority: 'normal', envelope }])
    await drain([sequence])
    const parent = { id: 's1', kind: 'sequence' }
    await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 60_000, takeBack: false })
    await foreign.lpush('sum_task_queue', JSON.stringify({ task_id: 'x', payload: { num1: 1, num2: 1 }, parent }))
    await drain([sum])
    expect((await broker.get(['x']))[0]?.record).toContain('"result":"2"')
    expect((await broker.get(['s1']))[0]?.live).toMatchObject({ state: 'waiting', pending: 1 })
  })

  /** A parent that waits for its child, which nobody runs. */
  async function waitingParent() {
    const envelope = encodeEnvelope({ task_id: 's1', kind: 'sequence', payload: { n: 1 } })
    await broker.enqueue([{ id: 's1', kind: 'sequence', priority: 'normal', envelope }])
    await drain([sequence])
    const { tasks } = await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 60_000, takeBack: false })
    expect((await broker.get(['s1']))[0]?.live).toMatchObject({ state: 'waiting', pending: 1 })
    return { id: 's1.0', kind: 'sum', envelope: tasks[0]?.envelope ?? '' }
  }
  const commands = async () => Number(/total_commands_processed:(\d+)/.exec(await foreign.info('stats'))?.[1])
  const parent = { id: 's1', kind: 'sequence' }

  test.each([
    ['with v further on', JSON.stringify({ task_id: 'x', payload: { num1: 1, num2: 1 }, parent, v: 1 })],
    ['with v after a space', `{"task_id":"x", "v":1,"payload":{"num1":1,"num2":1},"parent":${JSON.stringify(parent)}}`],
    ['with v first', JSON.stringify({ v: 1, task_id: 'x', payload: { num1: 1, num2: 1 }, parent })],
    ['with v twice', `{"task_id":"x","payload":{"num1":1,"num2":1},"parent":${JSON.stringify(parent)},"v":2,"v":1}`],
    [
      'alone in its group',
      JSON.stringify({ task_id: 'x', payload: { num1: 1, num2: 1 }, parent: { ...parent, group: 'one' }, v: 1 }),
    ],
  ])('an envelope that claims to be a child, %s, does not wake the parent, and nothing spins', async (_, text) => {
    await waitingParent()
    await foreign.lpush('sum_task_queue', text)
    const before = await commands()
    const worker = createWorker({ broker, clock, implementations: [sum, sequence], keyring: null, log: silentLog })
    expect((await worker.drain({ maxTasks: 50 })).ran).toBe(1)
    expect((await commands()) - before).toBeLessThan(60)
    expect((await broker.get(['s1']))[0]?.live).toMatchObject({ state: 'waiting', pending: 1 })
    expect(JSON.parse((await broker.get(['x']))[0]?.record ?? '')).toMatchObject({ result: '2' })
    expect((await broker.get(['x']))[0]?.record).not.toContain('parent')
  })

  test('an envelope that begins as ours do, with an id of escapes, is dropped: nobody queued it', async () => {
    await waitingParent()
    for (const id of ['a"b', 'a\\b', '\\"', 'a\tb'])
      await foreign.lpush('sum_task_queue', encodeEnvelope({ task_id: id, payload: { num1: 1, num2: 1 }, parent }))
    // Without a word of its own of whose it is.
    await foreign.lpush('sum_task_queue', '{"task_id":"c\\"d","payload":{"num1":1,"num2":1},"v":1}')
    const worker = createWorker({ broker, clock, implementations: [sum, sequence], keyring: null, log: silentLog })
    expect((await worker.drain({ maxTasks: 50 })).ran).toBe(1)
    expect((await broker.get(['s1']))[0]?.live).toMatchObject({ state: 'waiting', pending: 1 })
    expect((await foreign.hkeys('tasks')).sort()).toEqual(['c"d'])
  })

  test('children of a task whose id has escapes are its children all the same', async () => {
    await foreign.lpush('sequence_task_queue', JSON.stringify({ task_id: 'q"\\', payload: { n: 3 } }))
    await drain()
    expect(JSON.parse((await broker.get(['q"\\']))[0]?.record ?? '')).toMatchObject({ result: '6', calls: 3 })
  })

  test('an id with a dot, that nobody queued, is kept aside: it would be taken for a call of its parent', async () => {
    await waitingParent()
    const ids = ['s1.0', 's1.1', 's1.0.0', 'nobody.0', '.', 'ü.ü', 'a\\".0']
    for (const id of ids)
      await foreign.lpush('sum_task_queue', JSON.stringify({ task_id: id, payload: { num1: 40, num2: 2 } }))
    expect(await drain()).toBe(0)
    // The first one is live: what is queued of it counts, not what was pushed.
    expect(await stats('sum')).toMatchObject({ broken: ids.length - 1, queued: 0, succeeded: 0 })
    expect(await foreign.hlen('tasks')).toBe(0)
    clock.advance(60_000)
    await drain()
    expect(JSON.parse((await broker.get(['s1']))[0]?.record ?? '')).toMatchObject({ result: '1', status_code: 200 })
  })

  test.each([
    [
      'payload',
      `{"task_id":"a","payload":${'['.repeat(20_000)}${']'.repeat(20_000)}}`,
      'Nested deeper than 100 levels',
    ],
    [
      'payload of 101 levels',
      `{"task_id":"a","payload":${'['.repeat(101)}${']'.repeat(101)}}`,
      'Nested deeper than 100 levels',
    ],
    [
      'size',
      JSON.stringify({ task_id: 'a', payload: { num1: 1, num2: 2, more: 'x'.repeat(1_048_577) } }),
      'Larger than 1048576 bytes',
    ],
    ['NaN', '{"task_id":"a","payload":{"num1":NaN,"num2":1}}', 'NaN'],
    [
      'max_attempts',
      '{"task_id":"a","payload":{"num1":1,"num2":1},"max_attempts":1000000000}',
      'max_attempts: Expected a whole number from 1 to 100',
    ],
    [
      'no attempt',
      '{"task_id":"a","payload":{"num1":1,"num2":1},"max_attempts":0}',
      'max_attempts: Expected a whole number from 1 to 100',
    ],
    ['attempts as text', '{"task_id":"a","payload":{"num1":1,"num2":1},"max_attempts":"5"}', 'max_attempts'],
    [
      'timeout_ms',
      '{"task_id":"a","payload":{"num1":1,"num2":1},"timeout_ms":0}',
      'timeout_ms: Expected a whole number from 1 to 86400000',
    ],
    ['retention_s', '{"task_id":"a","payload":{"num1":1,"num2":1},"retention_s":1e300}', 'retention_s: Expected'],
    [
      'two of them',
      '{"task_id":"a","payload":{"num1":1,"num2":1},"timeout_ms":-1,"retention_s":0.5}',
      'timeout_ms: Expected a whole number from 1 to 86400000; retention_s',
    ],
  ])(
    'an envelope beyond the limits of the API (%s) is a 422 that says so, without its payload',
    async (_, text, says) => {
      await foreign.lpush('sum_task_queue', text)
      expect(await drain()).toBe(1)
      const record = JSON.parse((await broker.get(['a']))[0]?.record ?? '')
      expect(record).toMatchObject({ status: 'failed', status_code: 422, error: { type: 'bad_envelope' } })
      expect(record.result).toContain(says)
      expect(record).not.toHaveProperty('payload')
      expect(JSON.stringify(record).length).toBeLessThan(600)
    },
  )

  test('an envelope at the limits of the API is run, and options that are null are left out', async () => {
    const deep = (levels: number) => JSON.parse(`${'['.repeat(levels)}${']'.repeat(levels)}`)
    const payload = { num1: 1, num2: 1, deep: deep(99) }
    const options = { max_attempts: 100, timeout_ms: 86_400_000, retention_s: 0 }
    await foreign.lpush('sum_task_queue', JSON.stringify({ task_id: 'a', payload, ...options }))
    const none = { max_attempts: null, timeout_ms: null, retention_s: null, traceparent: 'x'.repeat(1_000), given: 'y' }
    await foreign.lpush('sum_task_queue', JSON.stringify({ task_id: 'b', payload: { num1: 1, num2: 1 }, ...none }))
    expect(await drain()).toBe(2)
    expect(JSON.parse((await broker.get(['a']))[0]?.record ?? '')).toMatchObject({ result: '2', ...options })
    const record = JSON.parse((await broker.get(['b']))[0]?.record ?? '')
    expect(record).toMatchObject({ result: '2' })
    for (const name of Object.keys(none)) expect(record).not.toHaveProperty(name)
  })

  test.each([
    ['a status code of 99', '{"result":"1","status_code":99}'],
    ['a status code of 600', '{"result":"1","status_code":600}'],
    ['a status code of 1xx', '{"result":"1","status_code":"102"}'],
    ['no text', '{"result":NaN,"status_code":200}'],
    ['levels without end', `{"result":${'['.repeat(20_000)}${']'.repeat(20_000)},"status_code":200}`],
    ['a result without end', JSON.stringify({ result: 'x'.repeat(1_048_577), status_code: 200 })],
    ['a step', '{"result":"1","status_code":200,"step":"sleep"}'],
    [
      'levels in its text',
      JSON.stringify({
        result: `${'['.repeat(20_000)}${']'.repeat(20_000)}`,
        status_code: 200,
        content_type: 'application/json',
      }),
    ],
  ])('a record of a child with %s fails its parent, and nothing spins', async (_, text) => {
    const child = await waitingParent()
    await foreign.hset('tasks', child.id, text)
    await adopt(broker, [{ ...child, record: text }], clock.now())
    const before = await commands()
    const worker = createWorker({ broker, clock, implementations: [sum, sequence], keyring: null, log: silentLog })
    expect((await worker.drain({ maxTasks: 50 })).ran).toBe(1)
    expect((await commands()) - before).toBeLessThan(60)
    const record = JSON.parse((await broker.get(['s1']))[0]?.record ?? '')
    expect(record).toMatchObject({ status: 'failed', status_code: 500 })
    expect(JSON.stringify(record).length).toBeLessThan(25_000)
    expect((await broker.get(['s1.0']))[0]?.record?.length).toBeLessThan(50_000)
  })

  test('a record that names a parent, limits beyond the API and a time of its own does not keep itself for ever', async () => {
    const envelope = encodeEnvelope({ task_id: 'b1', kind: 'sum', payload: { num1: 3, num2: 5 } })
    await broker.enqueue([{ id: 'b1', kind: 'sum', priority: 'normal', envelope }])
    await foreign.rpop('sum_task_queue')
    const more = { parent: { id: 'nobody', kind: 'sum' }, retention_s: 1e12, max_attempts: 1e9 }
    await foreign.hset('tasks', 'b1', JSON.stringify({ result: '8', status_code: 200, ...more }))
    await sweep()
    clock.advance(DEFAULT_RETENTION_S * 1_000)
    await sweep()
    expect(await broker.get(['b1'])).toEqual([null])
  })

  test('broken envelopes never stop a worker: recorded where there is an id, else kept aside and counted', async () => {
    const broken = [
      '',
      'no json',
      '[]',
      'null',
      '{}',
      '{"task_id":5,"payload":{}}',
      '{"task_id":"","payload":{}}',
      '{"payload":{}}',
      '{"task_id":"two\\nlines","payload":{}}',
      '"text"',
      '\xff\xfe',
    ]
    await foreign.lpush('sum_task_queue', ...broken)
    await foreign.lpush('sum_task_queue', '{"task_id":"no-payload"}')
    await foreign.lpush('sum_task_queue', '{"task_id":"wrong","payload":"x"}')
    await foreign.lpush('sum_task_queue', '{"task_id":"one","payload":{"num1":1,"num2":1},"task_id":"two"}')
    await foreign.lpush('sum_task_queue', '{"task_id":"good","payload":{"num1":1,"num2":1}}')
    await drain()
    expect(await stats('sum')).toMatchObject({ queued: 0, running: 0, broken: broken.length, failed: 3 })
    for (const id of ['no-payload', 'wrong']) {
      expect(JSON.parse((await broker.get([id]))[0]?.record ?? '')).toMatchObject({
        status: 'failed',
        status_code: 422,
      })
    }
    expect((await broker.get(['good']))[0]?.record).toContain('"result":"2"')
    // One that names two ids is recorded under the first.
    expect((await broker.get(['one']))[0]?.record).toContain('bad_envelope')
    expect(await foreign.llen('sum_task_queue:broken')).toBe(broken.length)
  })

  test('an id that is no text is kept aside: under no name that clients hand on could it be settled', async () => {
    const envelope = (id: number[]) =>
      Buffer.concat([Buffer.from('{"task_id":"'), Buffer.from(id), Buffer.from('","payload":{"num1":1,"num2":1}}')])
    const wrong = [[0xff], [0x61, 0xc3], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xe0, 0x80, 0xaf]]
    for (const id of wrong) await foreign.lpush('sum_task_queue', envelope(id))
    for (const id of ['ü', '日本', '💥', '\u{10ffff}'])
      await foreign.lpush('sum_task_queue', envelope([...Buffer.from(id)]))
    expect(await drain()).toBe(4)
    expect(await stats('sum')).toMatchObject({ queued: 0, running: 0, broken: wrong.length, succeeded: 4 })
  })

  test('a task that is ended by hand, its envelope left in the queue, leaves no count behind', async () => {
    const envelope = encodeEnvelope({ task_id: 'a1', kind: 'sum', payload: { num1: 1, num2: 1 } })
    await broker.enqueue([{ id: 'a1', kind: 'sum', priority: 'normal', envelope }])
    await foreign.hset('tasks', 'a1', '{"result":"2","status_code":200}')
    await sweep()
    await drain()
    expect(await foreign.hget('sum_task_queue:counts', 'dropped')).toBe('0')
    expect(await stats('sum')).toMatchObject({ queued: 0, running: 0 })
  })

  test('a task that was pushed, given back and cancelled leaves no count behind', async () => {
    await foreign.lpush('sum_task_queue', '{"task_id":"a1","payload":{"num1":3,"num2":5}}')
    const { tasks } = await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 60_000, takeBack: false })
    await broker.settle([{ type: 'release', id: 'a1', kind: 'sum', token: tasks[0]?.token ?? '' }])
    await cancelTree({ broker, contracts: {}, now: clock.now }, 'a1')
    expect(await stats('sum')).toMatchObject({ queued: 0, cancelled: 1 })
    // Another one is behind it in the queue, so that the counts are never seen to be nothing.
    await foreign.lpush('sum_task_queue', '{"task_id":"a2","payload":{"num1":3,"num2":5}}')
    await broker.claim({ kinds: ['sum'], limit: 1, leaseMs: 60_000, takeBack: false })
    await foreign.lpush('sum_task_queue', '{"task_id":"a3","payload":{"num1":3,"num2":5}}')
    expect(await stats('sum')).toMatchObject({ queued: 1, running: 1 })
  })

  test('what foreign workers take of cancelled tasks is counted until the queues are empty', async () => {
    const add = (id: string) => {
      const envelope = encodeEnvelope({ task_id: id, kind: 'sum', payload: { num1: 3, num2: 5 } })
      return broker.enqueue([{ id, kind: 'sum', priority: 'normal', envelope }])
    }
    await add('a1')
    await cancelTree({ broker, contracts: {}, now: clock.now }, 'a1')
    await foreign.rpop('sum_task_queue')
    expect(await stats('sum')).toMatchObject({ queued: 0, cancelled: 1 })
    await add('a2')
    expect(await stats('sum')).toMatchObject({ queued: 1 })
  })

  test('a task that a foreign worker has just ended is deleted whole', async () => {
    const envelope = encodeEnvelope({ task_id: 'a1', kind: 'sum', payload: { num1: 3, num2: 5 } })
    await broker.enqueue([{ id: 'a1', kind: 'sum', priority: 'normal', envelope }])
    await foreignSum()
    await removeTree({ broker, contracts: {}, now: clock.now }, 'a1')
    expect(await broker.get(['a1'])).toEqual([null])
    expect(await foreign.keys('*')).toEqual([])
  })

  test('a parent that a foreign program has just ended is deleted with its children', async () => {
    const parent = { id: 'p1', kind: 'sequence' }
    const envelope = encodeEnvelope({ task_id: 'p1', kind: 'sequence', payload: { n: 1 } })
    await broker.enqueue([{ ...parent, priority: 'normal', envelope }])
    const { tasks } = await broker.claim({ kinds: ['sequence'], limit: 1, leaseMs: 60_000, takeBack: false })
    const child = (id: string) => ({
      ...{ id, kind: 'sum', priority: 'normal' as const, parent },
      envelope: encodeEnvelope({ task_id: id, kind: 'sum', payload: { num1: 3, num2: 5 }, parent }),
    })
    // The first one is gone: without the length of the history nobody would look further.
    const call = {
      type: 'call',
      children: [child('p1.1'), child('p1.2')],
      records: [],
      calls: 3,
      steps: 0,
      awaits: null,
    } as const
    await broker.settle([{ ...parent, ...call, token: tasks[0]?.token ?? '', order: '', park: true, wakeAt: null }])
    await foreignSum()
    await foreign.hset('tasks', 'p1', '{"result":"8","status_code":200}')
    await removeTree({ broker, contracts: {}, now: clock.now }, 'p1')
    expect(await broker.get(['p1', 'p1.1', 'p1.2'])).toEqual([null, null, null])
    expect(await foreign.hlen('tasks:live')).toBe(0)
    await drain()
    expect(await stats('sum')).toMatchObject({ queued: 0, running: 0, succeeded: 0, cancelled: 0 })
    expect(await foreign.hlen('tasks')).toBe(0)
  })

  test('a record that tells of more calls than there can be is deleted at once', async () => {
    const record = { result: '', status_code: 500, kind: 'sum', calls: Number.MAX_SAFE_INTEGER, payload: {} }
    await foreign.hset('tasks', 'a1', JSON.stringify(record))
    await removeTree({ broker, contracts: {}, now: clock.now }, 'a1')
    expect(await broker.get(['a1'])).toEqual([null])
  })

  test('messages of any other form, on the channels of Tasker, are passed over', async () => {
    const events: TaskEvent[] = []
    const last = Promise.withResolvers<void>()
    const woken = Promise.withResolvers<void>()
    const watching = await broker.watch((event) => {
      events.push(event)
      if (event.type === 'end') last.resolve()
    })
    const subscribed = await broker.subscribe(['sum'], (_kind, at) => at === 7 && woken.resolve())
    const messages = [
      '',
      'no json',
      'null',
      '5',
      '[]',
      '{"type":"end"}',
      '{"type":"end","ids":5}',
      '{"type":"chunk"}',
      '{"sum":"x"}',
    ]
    for (const message of messages) {
      for (const channel of ['tasks:wake', 'tasks:events']) await foreign.publish(channel, message)
    }
    await foreign.publish('tasks:wake', '{"sum":7}')
    await foreign.publish('tasks:events', '{"type":"end","ids":["a1",5,"a2","a3"],"records":["{}","","",5]}')
    await Promise.all([last.promise, woken.promise])
    expect(events).toEqual([
      {
        type: 'end',
        tasks: [
          { id: 'a1', record: '{}' },
          { id: 'a2', record: null },
          { id: 'a3', record: null },
        ],
      },
    ])
    await Promise.all([watching.close(), subscribed.close()])
  })

  test('a secret that a foreign producer sends in clear is used, and is not in the final record', async () => {
    const key = 'sk-in-clear'
    await foreign.lpush(
      'chat_task_queue',
      JSON.stringify({ task_id: 'c1', payload: { question: 'Why?', api_key: key } }),
    )
    const seen: string[] = []
    await drain([
      implement(chat, ({ api_key }) => {
        seen.push(api_key)
        return 'Because.'
      }),
      conversation,
    ])
    expect(seen).toEqual([key])
    expect(await foreign.hget('tasks', 'c1')).not.toContain(key)
    expect(await foreign.hlen('tasks:live')).toBe(0)
  })
})
