/** What a run tells of its secrets, in whatever way it tells something: nothing. And what a worker does without a key. */
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import * as z from 'zod'
import { ConfigError } from '#shared/runtime/config.ts'
import { createKeyring, type Keyring, newKey, sealPayload } from '#shared/runtime/seal.ts'
import { type Contract, defineTask, secret } from '#shared/task/define.ts'
import { PermanentError } from '#shared/task/errors.ts'
import { readEnvelope } from '#shared/task/record.ts'
import { encodeEnvelope } from '#shared/task/task.ts'
import { findForms, formsOf } from '#shared/test/forms.ts'
import { stores } from '#shared/test/stores.ts'
import { kind, type WorkerScene, workerScene } from '#shared/test/worker-scene.ts'
import { type Context, type Implementation, implement } from './implement.ts'

const KEY = 'sk-"live/4f8Z"+q0=not&told'
const guarded = defineTask({
  kind: 'guarded',
  description: '',
  input: z.object({ key: secret(z.string()) }),
  output: z.any(),
  retry: { maxAttempts: 1 },
})
const parent = kind('parent')
const note = kind('note', { input: z.object({ text: z.any() }) })
const noteDown = implement(note, () => 'noted')

for (const store of stores) {
  describe(`on ${store.name}`, () => {
    let scene: WorkerScene
    let keyring: Keyring
    beforeEach(async () => {
      scene = workerScene(store)
      keyring = await createKeyring([newKey()])
    })
    afterEach(() => scene.broker.close())

    async function create(contract: Contract, payload: unknown, using = keyring): Promise<string> {
      const id = crypto.randomUUID()
      return enqueue(contract, id, await sealPayload(using, contract, id, payload))
    }

    async function enqueue({ kind }: Contract, id: string, payload: unknown): Promise<string> {
      const envelope = encodeEnvelope({ task_id: id, kind, payload, created_at: scene.clock.now() })
      await scene.broker.enqueue([{ id, kind, priority: 'normal', envelope }])
      return id
    }

    describe('a run that has a secret', () => {
      const chunks: string[] = []
      /** Runs a handler to its end and looks at all that is told and kept of it. */
      async function tell(handler: (key: string, ctx: Context) => unknown): Promise<Record<string, unknown>> {
        chunks.length = 0
        const watching = await scene.broker.watch((event) => {
          if (event.type === 'chunk') chunks.push(event.chunk)
        })
        const id = await create(guarded, { key: KEY })
        const list = [implement(guarded, ({ key }, ctx) => handler(key, ctx)), noteDown]
        const drains = async () => {
          await scene.drain(list as Implementation[], { keyring })
          scene.clock.advance(1_000)
        }
        await drains()
        const live = await scene.liveOf(id)
        for (let turn = 0; turn < 3; turn++) await drains()
        const kept = await scene.broker.get([id, ...[0, 1, 2, 3].map((n) => `${id}.${n}`)])
        await watching.close()
        const told = { kept: JSON.stringify(kept), live: JSON.stringify(live), log: scene.log.join('\n') }
        expect(findForms({ ...told, chunks: chunks.join('') }, formsOf(KEY))).toEqual({})
        return (await scene.recordOf(id)) as unknown as Record<string, unknown>
      }

      test('masks its result, names and numbers in it too', async () => {
        const record = await tell((key) => ({
          [key]: { deep: [key, 7, null, `the key is ${key}`] },
          json: quoted(key),
        }))
        expect(JSON.parse(String(record['result']))).toMatchObject({
          '[sealed]': { deep: ['[sealed]', 7, null, 'the key is [sealed]'] },
        })
        expect(await tell((key) => key)).toMatchObject({ result: '[sealed]' })
      })

      test('leaves a result that quotes nothing as it is', async () => {
        expect(await tell(() => ({ a: [1, 'sk', { b: null }] }))).toMatchObject({ result: '{"a":[1,"sk",{"b":null}]}' })
      })

      test('masks and limits the type of an error, and its message', async () => {
        const record = await tell((key) => {
          throw new PermanentError(`no: ${key}`, { code: key + 'x'.repeat(10_000) })
        })
        expect(record).toMatchObject({ error: { message: 'no: [sealed]' } })
        const { type } = record['error'] as { type: string }
        expect(type).toStartWith('[sealed]xxx')
        expect(type).toHaveLength(200)
      })

      test('masks a secret that is cut where an error is', async () => {
        for (let cut = 0; cut < KEY.length; cut += 5) {
          const record = await tell((key) => {
            throw new PermanentError('x'.repeat(10_000 - cut) + key)
          })
          expect((record['error'] as { message: string }).message).not.toContain('sk-')
        }
      })

      test('masks the results, names and failures of its steps', async () => {
        const record = await tell(async (key, ctx) => {
          const result = await ctx.step('first', () => ({ auth: `Bearer ${key}`, json: quoted(key) }))
          const failure = await ctx
            .step(`ask with ${key}`, () => {
              throw Object.assign(new Error(key), { name: key, code: key })
            })
            .catch((error: unknown) => error as Error)
          await ctx.sleep(1)
          return [result, String(failure)]
        })
        expect(record['result']).toContain('Bearer [sealed]')
      })

      test('masks the payloads of its children, and not the secrets in them', async () => {
        const seen = new Map<string, string>()
        const inner = kind('inner', { input: z.object({ key: secret(z.string()), text: z.string() }) })
        const id = await create(guarded, { key: KEY })
        const list = [
          implement(guarded, async ({ key }, ctx) => {
            await ctx.call(note, { text: { [key]: [key], json: quoted(key) } })
            await ctx.map(inner, [
              { key, text: `use ${key}` },
              { key: 'another-one', text: `use another-one, not ${key}` },
            ])
          }),
          implement(inner, ({ key, text }) => void seen.set(key, text)),
          noteDown,
        ]
        await scene.drain(list as Implementation[], { keyring })
        const kept = JSON.stringify(await scene.broker.get([id, `${id}.0`, `${id}.1`, `${id}.2`]))
        expect(findForms({ kept }, formsOf(KEY))).toEqual({})
        expect(kept).not.toContain('another-one')
        expect(Object.fromEntries(seen)).toEqual({ [KEY]: 'use [sealed]', 'another-one': 'use [sealed], not [sealed]' })
        expect(await scene.recordOf(id)).toMatchObject({ status_code: 200 })
      })

      test('masks what it takes over from a child that quotes it', async () => {
        const id = await create(guarded, { key: KEY })
        const list = [
          implement(guarded, ({ key }, ctx) => ctx.call(note, { text: [...key] })),
          implement(note, ({ text }) => {
            throw new PermanentError(text.join(''), { code: text.join('') })
          }),
        ]
        await scene.drain(list as Implementation[], { keyring })
        expect(await scene.recordOf(id)).toMatchObject({ error: { type: '[sealed]', message: '[sealed]' } })
      })

      test('masks its chunks, also where they cut a secret in two, and keeps back no more than it must', async () => {
        await tell((key, ctx) => {
          for (const chunk of [
            'The key is ',
            key.slice(0, 9),
            key.slice(9, 20),
            key.slice(20),
            ', and ',
            ...key,
            ' s',
            'k',
          ])
            ctx.emit(chunk)
        })
        expect(chunks.join('')).toBe('The key is [sealed], and [sealed] sk')
        expect(chunks[0]).toBe('The key is ')
        await tell((key, ctx) => ctx.emit(`begins ${key.slice(0, 20)}`))
        expect(chunks.join('')).toBe('begins [sealed]')
      })

      test('masks what it says of its progress', async () => {
        const record = await tell((key, ctx) => ctx.progress(('x'.repeat(90) + key) as never, 1))
        expect((record['error'] as { message: string }).message).not.toContain('sk-')
      })

      test('is given the same results of steps in each run', async () => {
        const seen = new Set<unknown>()
        await tell(async (key, ctx) => {
          seen.add(await ctx.step('ask', () => `quotes ${key}`))
          await ctx.sleep(1)
        })
        expect([...seen]).toEqual(['quotes [sealed]'])
      })
    })

    describe('secrets that cannot be hidden', () => {
      const refuse = async (key: unknown) => {
        const id = await scene.create(parent)
        await scene.drain([implement(parent, (_, ctx) => ctx.call(guarded, { key: key as string }))], { keyring })
        return scene.recordOf(id)
      }

      test('are refused at the call of a child', async () => {
        for (const key of ['k', '12345']) {
          expect(await refuse(key)).toMatchObject({
            ...{ status_code: 422, error: { type: 'invalid_input' } },
            result: expect.stringMatching(/payload\.key: A secret must be text of at least 6 characters/),
          })
        }
      })
    })

    describe('a worker without the key', () => {
      test('that has none leaves kinds with secrets alone, and says so', async () => {
        const id = await create(guarded, { key: KEY })
        const plain = await scene.create(note, { text: '' })
        await scene.drain([implement(guarded, () => 'never'), noteDown])
        expect(await scene.recordOf(plain)).toMatchObject({ result: 'noted' })
        expect(await scene.liveOf(id)).toMatchObject({ state: 'queued', attempts: 0 })
        expect(scene.log.join('\n')).toMatch(/no key for secret fields.*TASKER_SECRET.*"kinds":\["guarded"\]/)
      })

      test('that has none, and only kinds with secrets, does not start', () => {
        expect(() => scene.worker([implement(guarded, () => 'never')])).toThrow(ConfigError)
        expect(() => scene.worker([implement(guarded, () => 'never')])).toThrow(/guarded.*TASKER_SECRET/)
      })

      test('gives a task back whose key it lacks, without an attempt, and another one runs it', async () => {
        const id = await create(guarded, { key: KEY })
        const other = await createKeyring([newKey()])
        const list = [implement(guarded, () => 'done')]
        await scene.drain(list, { keyring: other })
        expect(await scene.liveOf(id)).toMatchObject({ state: 'waiting', attempts: 0 })
        scene.clock.advance(5_000)
        await scene.drain(list, { keyring })
        expect(await scene.recordOf(id)).toMatchObject({ result: 'done', attempt: 1 })
      })

      test('does not look at such a task again and again, and says once a minute that it waits', async () => {
        const ids = await Promise.all(Array.from({ length: 20 }, () => create(guarded, { key: KEY })))
        const other = await createKeyring([newKey()])
        const unable = scene.worker([implement(guarded, () => 'never')], { keyring: other })
        let looks = 0
        for (let second = 0; second < 3_600; second++) {
          looks += (await unable.drain()).ran
          scene.clock.advance(1_000)
        }
        // At 5, 10, 20, … s of age, then every five minutes.
        expect(looks / ids.length).toBeWithin(12, 20)
        const told = scene.log.filter((line) => line.includes('wait for a key'))
        expect(told.length).toBeWithin(5, 20)
        expect(told[0]).toMatch(/"level":"ERROR".*"kind":"guarded".*lacks key [\w-]{8}.*TASKER_SECRET/)
        expect(told.join('\n')).not.toContain(KEY)
        for (const id of ids) expect(await scene.liveOf(id)).toMatchObject({ attempts: 0 })
      })

      test('is not told by a key’s id of another form what to do: such a text was never sealed here', async () => {
        const id = await create(guarded, { key: KEY })
        const { payload } = readEnvelope((await scene.liveOf(id))?.envelope ?? '') as { payload: { key: string } }
        const [, ...parts] = payload.key.split('.')
        for (const kid of ['k'.repeat(100_000), 7, undefined, { k: 1 }, 'a b']) {
          const head = Buffer.from(JSON.stringify({ alg: 'dir', enc: 'A256GCM', kid, task_id: 'odd' })).toString(
            'base64url',
          )
          await enqueue(guarded, 'odd', { key: `sealed:${[head, ...parts].join('.')}` })
          await scene.drain([implement(guarded, () => 'never')], { keyring })
          const record = await scene.recordOf('odd')
          expect(record).toMatchObject({ status: 'failed', error: { type: 'sealed' } })
          expect(record.result.length).toBeLessThan(200)
          await scene.broker.remove([{ id: 'odd' }])
        }
      })

      test('puts a parent off that calls a kind with secrets, and keeps what its steps have done', async () => {
        let steps = 0
        const id = await scene.create(parent)
        const list = [
          implement(parent, async (_, ctx) => {
            await ctx.step('once', () => ++steps)
            return ctx.call(guarded, { key: KEY })
          }),
        ]
        await scene.drain(list)
        expect(await scene.liveOf(id)).toMatchObject({ state: 'waiting', attempts: 0 })
        scene.clock.advance(5_000)
        await scene.drain([...list, implement(guarded, () => 'done')] as Implementation[], { keyring })
        expect(await scene.recordOf(id)).toMatchObject({ result: 'done', attempt: 1 })
        expect(steps).toBe(1)
      })
    })

    test('a schema that waits for something fails a task at once, and says what to do', async () => {
      const waiting = kind('waiting', { output: z.any().superRefine((): never => Promise.resolve() as never) })
      const id = await scene.create(waiting)
      await scene.drain([implement(waiting, () => 1)])
      expect(await scene.recordOf(id)).toMatchObject({ attempt: 1, error: { type: 'async_schema' } })
    })
  })
}

function quoted(key: string): string {
  const bytes = Buffer.from(key)
  const packed = (['base64', 'base64url', 'hex'] as const).map((encoding) => bytes.toString(encoding))
  return [
    JSON.stringify({ key }),
    JSON.stringify({ json: JSON.stringify({ key }) }),
    ...packed,
    encodeURIComponent(key).replace(/%../g, (code) => code.toLowerCase()),
  ].join(' ')
}
