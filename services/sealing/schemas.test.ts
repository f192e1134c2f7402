/** Kinds with secrets anywhere: each is refused when it is defined, or its secrets are nowhere. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import * as z from 'zod'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { type Contract, defineTask, secret } from '#shared/task/define.ts'
import { PermanentError } from '#shared/task/errors.ts'
import { type Durable, type DurableStore, durableStores } from '#shared/test/durable-stores.ts'
import { findForms, formsOf } from '#shared/test/forms.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { type Context, type Implementation, implement } from '#shared/worker/implement.ts'
import { createWorker } from '#shared/worker/worker.ts'
import { createApp as createCreator } from '../creator/app.ts'
import { createApp as createManager } from '../manager/app.ts'
import { SECRET, writtenInAllForms } from './scene.ts'

/** A schema, and what fits it. */
interface Shape {
  readonly name: string
  readonly schema: z.ZodType
  readonly value: unknown
  readonly hasSecret: boolean
}

const marked = (name: string, schema: z.ZodType): Shape => ({ name, schema, value: SECRET, hasSecret: true })
const secrets = fc.constantFrom<Shape>(
  marked('secret', secret(z.string())),
  marked('secret.min.trim', secret(z.string()).min(3).trim()),
  marked('secret.refine', secret(z.string().refine((text) => text !== ''))),
  marked('secret.enum', secret(z.enum([SECRET, 'another-one']))),
  marked('secret.literal', secret(z.literal(SECRET))),
  marked('secret.any', secret(z.any())),
  marked('secret.transform', secret(z.string().transform((text) => `${text}!`))),
  marked('secret.catch', secret(z.string().catch('nothing'))),
  marked('secret.template', secret(z.templateLiteral([z.string()]))),
  marked('secret.union', secret(z.union([z.string(), z.null()]))),
  marked('secret.pipe', secret(z.string().pipe(z.string()))),
)
const others = fc.constantFrom<Shape>(
  { name: 'string', schema: z.string(), value: 'plain', hasSecret: false },
  { name: 'number', schema: z.number(), value: 7, hasSecret: false },
  { name: 'any', schema: z.any(), value: { some: ['thing'] }, hasSecret: false },
)

type Wrap = (inner: Shape) => [schema: z.ZodType, value: unknown]
/** What one schema may be in. Some may carry a value elsewhere, and some have no form in JSON. */
const WRAPS: Record<string, Wrap> = {
  object: ({ schema, value }) => [z.object({ in: schema }), { in: value }],
  strict: ({ schema, value }) => [z.object({ in: schema }).strict(), { in: value }],
  loose: ({ schema, value }) => [z.looseObject({ in: schema }), { in: value, more: 1 }],
  catchall: ({ schema, value }) => [z.object({}).catchall(schema), { in: value }],
  array: ({ schema, value }) => [z.array(schema), [value, value]],
  tuple: ({ schema, value }) => [z.tuple([z.number(), schema]), [1, value]],
  rest: ({ schema, value }) => [z.tuple([z.number()]).rest(schema), [1, value, value]],
  record: ({ schema, value }) => [z.record(z.string(), schema), { a: value, b: value }],
  union: ({ schema, value }) => [z.union([z.number(), schema]), value],
  unionOfObjects: ({ schema, value }) => [z.union([z.object({ a: schema }), z.looseObject({})]), { a: value }],
  discriminated: ({ schema, value }) => [
    z.discriminatedUnion('t', [z.object({ t: z.literal(1), in: schema }), z.object({ t: z.literal(2) })]),
    { t: 1, in: value },
  ],
  intersection: ({ schema, value }) => [z.intersection(z.object({ in: schema }), z.object({})), { in: value }],
  lazy: ({ schema, value }) => [z.lazy(() => schema), value],
  optional: ({ schema, value }) => [schema.optional(), value],
  nullable: ({ schema, value }) => [schema.nullable(), value],
  nullish: ({ schema, value }) => [schema.nullish(), value],
  nonoptional: ({ schema, value }) => [z.nonoptional(schema.optional()), value],
  default: ({ schema, value }) => [schema.default(value as never), undefined],
  prefault: ({ schema, value }) => [schema.prefault(value as never), undefined],
  readonly: ({ schema, value }) => [schema.readonly(), value],
  refine: ({ schema, value }) => [schema.refine(() => true), value],
  describe: ({ schema, value }) => [schema.describe('Something.'), value],
  catch: ({ schema, value }) => [
    schema.catch((context: { value: unknown }) => ({ caught: context.value }) as never),
    value,
  ],
  transform: ({ schema, value }) => [schema.transform((one) => ({ moved: JSON.stringify(one) })), value],
  transformObject: ({ schema, value }) => [
    z.object({ in: schema }).transform(({ in: one }) => ({ out: one })),
    { in: value },
  ],
  preprocess: ({ schema, value }) => [z.preprocess((one) => one, schema), value],
  pipe: ({ schema, value }) => [schema.pipe(z.any()), value],
  overwrite: ({ schema, value }) => [
    z.object({ in: schema }).overwrite((one) => ({ ...one, copy: one.in })),
    { in: value },
  ],
  carriedByCheck: ({ schema, value }) => [
    z.looseObject({ in: schema }).superRefine((one) => {
      one['copy'] = one.in
    }),
    { in: value },
  ],
  unionWithTransform: ({ schema, value }) => [
    z.union([z.object({ in: schema, never: z.literal(1) }), z.any().transform((one) => ({ carried: one?.in }))]),
    { in: value },
  ],
  map: ({ schema }) => [z.map(z.string(), schema), {}],
  set: ({ schema }) => [z.set(schema), []],
  promise: ({ schema }) => [z.promise(schema), {}],
}

const wraps = fc.array(fc.constantFrom(...Object.keys(WRAPS)), { maxLength: 4 })
const shape: fc.Arbitrary<Shape> = fc
  .record({ inner: fc.oneof({ weight: 4, arbitrary: secrets }, others), around: wraps })
  .map(({ inner, around }) =>
    around.reduce<Shape>((within, name) => {
      const [schema, value] = WRAPS[name]?.(within) ?? [within.schema, within.value]
      return { name: `${name}(${within.name})`, schema, value, hasSecret: within.hasSecret }
    }, inner),
  )

/** A handler that tells all that it was given, in every way there is. */
async function tellAll(payload: unknown, ctx: Context, note: Contract, isFailing: boolean): Promise<unknown> {
  const json = JSON.stringify(payload)
  const told = `${json} ${JSON.stringify({ json })} ${Buffer.from(json).toString('hex')}`
  const texts = JSON.stringify(payload, (_, value) => (typeof value === 'string' ? writtenInAllForms(value) : value))
  for (const chunk of told.match(/.{1,7}/gs) ?? []) ctx.emit(chunk)
  await ctx.step(told.slice(0, 200), () => ({ payload, texts }))
  await ctx.step('fail', () => Promise.reject(new PermanentError(texts, { code: told }))).catch(() => undefined)
  await ctx.call(note, { payload, told, texts })
  if (isFailing) throw new PermanentError(texts, { code: told })
  return { payload, told, texts }
}

const RUNS = 150

describe.each(durableStores)('on $name', ({ start }) => {
  let durable: Durable
  let store: DurableStore
  const clock = manualClock()
  beforeAll(async () => {
    durable = await start()
  })
  afterAll(() => durable.stop())
  beforeEach(async () => {
    store = await durable.open({ now: clock.now })
  })
  afterEach(() => store.broker.close())

  test('a kind with a secret anywhere is refused with the field’s name, or the secret is in no file, answer, record, chunk or log', async () => {
    const { broker } = store
    const keyring = await createKeyring([newKey()])
    const lines: string[] = []
    const log = createLogger('debug', (line) => lines.push(line))
    const chunks: string[] = []
    const watching = await broker.watch((event) => {
      if (event.type === 'chunk') chunks.push(event.chunk)
    })
    const seen = { refused: 0, unfit: 0, sealed: 0 }
    let n = 0

    async function tried({ schema, value }: Shape, isFailing: boolean): Promise<void> {
      const kind = `kind-${n++}`
      const note = defineTask({ kind: `note-${n}`, description: '', input: z.any(), output: z.any() }) as Contract
      let contract: Contract
      try {
        contract = defineTask({ kind, description: '', input: z.object({ f: schema }), output: z.any() }) as Contract
      } catch (error) {
        expect(String(error)).toMatch(new RegExp(`^TypeError: ${kind}: input\\.f.*(is marked secret|cannot be stored)`))
        seen.refused++
        return
      }
      const deps = { broker, contracts: { [kind]: contract, [note.kind]: note }, log, auth: null, now: clock.now }
      const creator = createCreator({ ...deps, keyring, managerUrl: 'http://manager' })
      const manager = createManager(deps)
      const body = JSON.stringify({ payload: { f: value } })
      const headers = { 'Content-Type': 'application/json' }
      const created = await creator.request(`/${kind}`, { method: 'POST', body, headers })
      const answers = [await created.text()]
      const { task_id: id } = JSON.parse(answers[0] ?? '')
      const ids = [id, ...[0, 1, 2].map((i) => `${id}.${i}`)]
      const look = async (): Promise<string> => {
        for (const one of ids) answers.push(await (await manager.request(`/task/${one}`)).text())
        const kept = JSON.stringify(await broker.get(ids))
        const places = { kept, answers: answers.join('\n'), chunks: chunks.join(''), log: lines.join('\n') }
        expect(findForms(places, formsOf(SECRET))).toEqual({})
        return kept
      }
      if (created.status === 201) await look()
      else expect({ status: created.status, answer: answers[0] }).toMatchObject({ status: 422 })
      const handlers = [
        implement(contract, (payload, ctx) => tellAll(payload, ctx, note, isFailing)),
        implement(note, () => 'noted'),
      ]
      await createWorker({ ...{ broker, clock, keyring, log }, implementations: handlers as Implementation[] }).drain()
      const kept = await look()
      expect(kept).not.toContain('"live":{')
      if (created.status === 201) {
        if (body.includes('top/secret')) expect(kept).toContain('[sealed]')
        expect(kept).toContain(isFailing ? '\\"status\\":\\"failed\\"' : '\\"status_code\\":200')
        seen.sealed++
      } else seen.unfit++
      chunks.length = 0
      lines.length = 0
    }

    await fc.assert(
      fc.asyncProperty(
        shape.filter(({ hasSecret }) => hasSecret),
        fc.boolean(),
        tried,
      ),
      { numRuns: RUNS },
    )
    // Each of the wraps by itself, too.
    for (const [name, wrap] of Object.entries(WRAPS)) {
      const [schema, value] = wrap(marked('secret', secret(z.string())))
      await tried({ name, schema, value, hasSecret: true }, false)
    }
    expect(findForms(await store.files(), formsOf(SECRET))).toEqual({})
    expect(seen.refused).toBeGreaterThan(RUNS / 10)
    expect(seen.sealed).toBeGreaterThan(RUNS / 10)
    await watching.close()
  }, 60_000)
})
