import { afterEach, describe, expect, test } from 'bun:test'
import * as z from 'zod'
import { adopt } from '#shared/broker/adopt.ts'
import { viewOf } from '#shared/broker/view.ts'
import { createKeyring, sealPayload } from '#shared/runtime/seal.ts'
import { type Contract, defineTask, secret } from '#shared/task/define.ts'
import { PermanentError, RetryLater } from '#shared/task/errors.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { stores } from '#shared/test/stores.ts'
import { add, adder, kind, type WorkerScene, workerScene } from '#shared/test/worker-scene.ts'
import { implement } from './implement.ts'

const flaky = kind('flaky', { retry: { maxAttempts: 30, backoffMs: 1_000 } })
const NEVER_LONGER_MS = 300_000

for (const store of stores) {
  describe(`a failed attempt, on ${store.name}`, () => {
    let scene: WorkerScene
    afterEach(() => scene.broker.close())

    async function view(id: string, contract: Contract = flaky) {
      const [stored] = await scene.broker.get([id])
      if (!stored) throw new Error(`There is no task ${id}`)
      return viewOf(stored, { [contract.kind]: contract })
    }
    const at = () => new Date(scene.clock.now()).toISOString()

    test('is shown while the task waits for the next, and after it has succeeded', async () => {
      scene = workerScene(store)
      const id = await scene.create(flaky)
      let runs = 0
      const fails = implement(flaky, () => {
        if (++runs < 3) throw new RetryLater(`no luck ${runs}`, { statusCode: 502 })
        return 'done'
      })
      expect(await view(id)).toMatchObject({ last_error: null, attempts: [] })
      const first = { type: 'retry_later', message: 'no luck 1', status_code: 502, at: at() }
      await scene.worker([fails]).drain()
      expect(await view(id)).toMatchObject({
        ...{ status: 'delayed', attempt: 1, error: null, last_error: first, attempts: [{ attempt: 1, ...first }] },
      })
      scene.clock.advance(NEVER_LONGER_MS)
      const second = { ...first, message: 'no luck 2', at: at() }
      await scene.worker([fails]).drain()
      scene.clock.advance(NEVER_LONGER_MS)
      await scene.worker([fails]).drain()
      expect(await view(id)).toMatchObject({
        ...{ status: 'succeeded', attempt: 3, error: null, last_error: second },
        attempts: [
          { attempt: 1, ...first },
          { attempt: 2, ...second },
        ],
      })
    })

    test('is a line in the log of its worker when another follows, and only then', async () => {
      scene = workerScene(store)
      const id = await scene.create(flaky, {}, { max_attempts: 2 })
      const fails = implement(flaky, () => {
        throw new Error('no luck')
      })
      const lines = () => scene.log.map((line) => JSON.parse(line)).filter(({ level }) => level === 'WARN')
      await scene.worker([fails]).drain()
      expect(lines()).toMatchObject([
        { task_id: id, kind: 'flaky', attempt: 1, type: 'error', error: 'no luck', status_code: 500 },
      ])
      scene.clock.advance(NEVER_LONGER_MS)
      await scene.worker([fails]).drain()
      expect(lines()).toHaveLength(1)
      expect((await view(id)).attempts).toMatchObject([{ attempt: 1 }, { attempt: 2, message: 'no luck' }])
    })

    test('leaves a short text, of the last ten', async () => {
      scene = workerScene(store)
      const id = await scene.create(flaky, {}, { max_attempts: 13 })
      const fails = implement(flaky, (_, ctx) => {
        throw new Error(`${ctx.attempt} ${'x'.repeat(20_000)}`)
      })
      for (let attempt = 1; attempt <= 13; attempt++) {
        await scene.worker([fails]).drain()
        const { attempts, last_error } = await view(id)
        expect(attempts.map((one) => one.attempt).at(-1)).toBe(attempt)
        expect(attempts).toHaveLength(Math.min(attempt, 10))
        expect(last_error?.message).toHaveLength(500)
        scene.clock.advance(NEVER_LONGER_MS)
      }
      const { status, error, attempts } = await view(id)
      expect({ status, first: attempts[0]?.attempt }).toEqual({ status: 'failed', first: 4 })
      expect(error?.message).toHaveLength(10_000)
    })

    test('is told as that of a worker that died where nobody was left to tell', async () => {
      scene = workerScene(store)
      const { broker, clock } = scene
      const id = await scene.create(flaky)
      const fails = implement(flaky, () => {
        throw new Error('no luck')
      })
      const dies = async () => {
        await broker.claim({ kinds: ['flaky'], limit: 1, leaseMs: 1_000, takeBack: true })
        clock.advance(NEVER_LONGER_MS)
      }
      await dies()
      await scene.worker([fails]).drain()
      clock.advance(NEVER_LONGER_MS)
      await dies()
      await scene.worker([implement(flaky, () => 'done')]).drain()
      const lost = { type: 'worker_lost', status_code: null, at: null }
      expect(await view(id)).toMatchObject({
        ...{ status: 'succeeded', attempt: 4, last_error: lost },
        attempts: [
          { attempt: 1, ...lost },
          { attempt: 2, type: 'error', message: 'no luck' },
          { attempt: 3, ...lost },
        ],
      })

      const once = await scene.create(flaky, {}, { max_attempts: 1 })
      await dies()
      await scene.worker([fails]).drain()
      expect(await view(once)).toMatchObject({ status: 'failed', attempts: [{ attempt: 1, ...lost }] })
    })

    test('is shown of a task that is cancelled before the next, and forgotten when a person retries it', async () => {
      scene = workerScene(store)
      const id = await scene.create(flaky)
      await scene.worker([implement(flaky, () => Promise.reject(new Error('no luck')))]).drain()
      await scene.cancel(id, flaky)
      expect(await view(id)).toMatchObject({
        ...{ status: 'cancelled', error: { type: 'cancelled' }, last_error: { message: 'no luck' } },
        attempts: [{ attempt: 1, message: 'no luck' }],
      })
      await scene.retry(id, flaky)
      expect(await view(id)).toMatchObject({ status: 'queued', attempt: 0, last_error: null, attempts: [] })
    })

    test('of a foreign task leaves its envelope as it was written, to the letter, but for the errors at its end', async () => {
      scene = workerScene(store)
      const id = 'foreign-1'
      const envelope = `{ "payload": {"n": 1e3, "text": "\\u00fc\\n ", "deep": [ {} ]},\n "task_id" : "${id}", "attempts": "mine" }\n`
      await scene.broker.enqueue([{ id, kind: 'flaky', priority: 'normal', envelope }])
      const seen: unknown[] = []
      const fails = implement(flaky, (payload, ctx) => {
        seen.push(structuredClone(payload))
        if (ctx.attempt < 3) throw new Error(`no luck ${ctx.attempt}`)
        return null
      })
      for (const _ of [1, 2]) {
        await scene.worker([fails]).drain()
        scene.clock.advance(NEVER_LONGER_MS)
      }
      const written = (await scene.liveOf(id))?.envelope ?? ''
      expect(written.startsWith(envelope.trimEnd().slice(0, -1))).toBe(true)
      expect(written.split('"no luck 1"')).toHaveLength(2)
      await scene.worker([fails]).drain()
      expect(seen).toEqual([1, 2, 3].map(() => ({ n: 1000, text: 'ü\n ', deep: [{}] })))
      expect((await view(id)).attempts).toMatchObject([{ message: 'no luck 1' }, { message: 'no luck 2' }])
    })

    test('of a foreign task whose envelope is as large as it may be does not make that too large', async () => {
      scene = workerScene(store)
      const id = 'foreign-large'
      const [before, after] = [`{"task_id":"${id}","payload":"`, '"}']
      const envelope = before + 'x'.repeat(1_048_576 - before.length - after.length) + after
      await scene.broker.enqueue([{ id, kind: 'flaky', priority: 'normal', envelope }])
      const fails = implement(flaky, (_, ctx) => {
        if (ctx.attempt < 3) throw new Error('\u0001'.repeat(10_000))
        return null
      })
      for (let attempt = 1; attempt <= 3; attempt++) {
        await scene.worker([fails]).drain()
        scene.clock.advance(NEVER_LONGER_MS)
      }
      expect(await view(id)).toMatchObject({ status: 'succeeded', attempt: 3 })
    })

    test('stays shown when a foreign worker ends the task', async () => {
      scene = workerScene(store)
      const { broker, clock } = scene
      const id = await scene.create(flaky)
      await scene.worker([implement(flaky, () => Promise.reject(new Error('no luck')))]).drain()
      const { envelope = '' } = (await scene.liveOf(id)) ?? {}
      const settled: string[] = []
      const record = '{"result":"done","status_code":200}'
      const watched = {
        ...broker,
        async settle(outcomes: Parameters<typeof broker.settle>[0]) {
          for (const outcome of outcomes) if (outcome.type === 'adopt') settled.push(outcome.record)
          return { refused: [], next: null }
        },
      }
      await adopt(watched, [{ id, kind: 'flaky', record, envelope }], clock.now())
      const adopted = viewOf({ id, record: settled[0] ?? '', live: null }, {})
      expect(adopted).toMatchObject({ status: 'succeeded', attempt: 2, attempts: [{ attempt: 1, message: 'no luck' }] })
    })

    test('quotes no secret, in its text or in its type', async () => {
      scene = workerScene(store)
      const keyring = await createKeyring(['a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2U='])
      const asking = defineTask({
        ...{ kind: 'asking', description: 'Asks.', output: z.string() },
        input: z.object({ api_key: secret(z.string()) }),
      })
      const id = crypto.randomUUID()
      const payload = await sealPayload(keyring, asking, id, { api_key: 'sk-very-secret' })
      const envelope = encodeEnvelope({ task_id: id, kind: 'asking', payload })
      await scene.broker.enqueue([{ id, kind: 'asking', priority: 'normal', envelope }])
      const fails = implement(asking, ({ api_key }) => {
        throw Object.assign(new RetryLater(`Refused ${api_key}`), { code: api_key })
      })
      await scene.worker([fails], { keyring }).drain()
      expect((await view(id, asking)).last_error).toMatchObject({ type: '[sealed]', message: 'Refused [sealed]' })
      expect(JSON.stringify(await scene.broker.get([id])) + scene.log.join('')).not.toContain('sk-very-secret')
    })

    test('that ends its task at once is shown, too', async () => {
      scene = workerScene(store)
      const id = await scene.create(flaky)
      const fails = implement(flaky, () => {
        throw new PermanentError('no such thing', { code: 'gone', statusCode: 410 })
      })
      await scene.worker([fails]).drain()
      const last = { type: 'gone', message: 'no such thing', status_code: 410, at: at() }
      expect(await view(id)).toMatchObject({ last_error: last, attempts: [{ attempt: 1, ...last }] })
    })

    test('costs nothing where there is none: no byte of envelope or record tells of attempts', async () => {
      scene = workerScene(store)
      const id = await scene.create(add, { a: 1, b: 2 })
      const before = (await scene.liveOf(id))?.envelope ?? ''
      await scene.worker([adder]).drain()
      const [stored] = await scene.broker.get([id])
      expect(before + stored?.record).not.toContain('"attempts"')
    })
  })
}
