/** Of a secret anywhere in a schema: it is sealed wherever it may be, or the kind is refused. Never a third way. */
import { describe, expect, test } from 'bun:test'
import * as z from 'zod'
import { type Contract, defineTask, mapSecrets, parsePayload, redact, secret, secretsIn } from './define.ts'
import { InvalidInput } from './errors.ts'

const KEY = 'sk-live-4f8Zq0-do-not-tell'
const define = (input: z.ZodType, output: z.ZodType = z.null()): Contract =>
  defineTask({ kind: 'tried', description: '', input, output })
const text = () => secret(z.string())

/** What is stored of a payload. */
async function stored(contract: Contract, payload: unknown): Promise<string> {
  const parsed = parsePayload(contract, payload)
  const sealed = await mapSecrets(contract, parsed, () => 'SEALED')
  expect(await mapSecrets(contract, sealed, () => KEY)).toEqual(parsed)
  return JSON.stringify([sealed, redact(contract, parsed), redact(contract, sealed), redact(contract, payload)])
}

type Build = (s: z.ZodType<string>) => z.ZodType
/** How a constructor is given a secret, and a value of it that fits; or what the refusal says instead. */
type Row = readonly [build: Build, fits: unknown] | readonly [build: Build, refused: RegExp]

const CARRIED = /input\.f\S* cannot be sealed: it is marked secret.*(secret\(z\.string\(\)\.transform|in the handler)/
const NO_TEXT = /input\.f is marked secret and is no text.*use z\.string\(\)/
const marked = (schema: z.ZodType) => (): z.ZodType => secret(schema)
const texts = (schema: z.ZodType): Row => [marked(schema), KEY]
const noText = (schema: z.ZodType): Row => [marked(schema), NO_TEXT]
const any = (value: unknown) => value as never

/** Every function of zod that makes a schema. What holds others is given a secret inside, and what holds none is marked itself. */
const CONSTRUCTORS: Record<string, Row> = {
  // These hold others.
  array: [(s) => z.array(s), [KEY]],
  object: [(s) => z.object({ a: s }), { a: KEY }],
  strictObject: [(s) => z.strictObject({ a: s }), { a: KEY }],
  looseObject: [(s) => z.looseObject({ a: s }), { a: KEY, b: 1 }],
  deepPartial: [(s) => z.deepPartial(z.object({ a: z.object({ b: s }) })), { a: { b: KEY } }],
  tuple: [(s) => z.tuple([z.number(), s], s), [1, KEY, KEY, KEY]],
  record: [(s) => z.record(z.string(), s), { a: KEY, b: KEY }],
  partialRecord: [(s) => z.partialRecord(z.enum(['a', 'b']), s), { a: KEY }],
  looseRecord: [(s) => z.looseRecord(z.string().regex(/^x/), s), { x1: KEY, other: KEY }],
  union: [(s) => z.union([z.object({ a: s }), z.object({ b: z.string() })]), { a: KEY }],
  xor: [(s) => z.xor([z.object({ a: s }), z.object({ b: z.string() })]), { a: KEY }],
  discriminatedUnion: [
    (s) => z.discriminatedUnion('t', [z.object({ t: z.literal('a'), a: s }), z.object({ t: z.literal('b') })]),
    { t: 'a', a: KEY },
  ],
  intersection: [(s) => z.intersection(z.object({ a: s }), z.looseObject({ b: s })), { a: KEY, b: KEY }],
  lazy: [(s) => z.lazy(() => z.object({ a: s })), { a: KEY }],
  optional: [(s) => z.optional(s), KEY],
  exactOptional: [(s) => z.exactOptional(s), KEY],
  nullable: [(s) => z.nullable(s), KEY],
  nullish: [(s) => z.nullish(z.object({ a: s })), { a: KEY }],
  nonoptional: [(s) => z.nonoptional(z.object({ a: s }).optional()), { a: KEY }],
  readonly: [(s) => z.readonly(z.object({ a: s })), { a: KEY }],
  _default: [(s) => z._default(z.object({ a: s }), { a: KEY }), undefined],
  prefault: [(s) => z.prefault(z.object({ a: s }), { a: KEY }), undefined],
  catch: [(s) => z.catch(z.object({ a: s }), { a: '' }), /input\.f\.a cannot be sealed.*z\.string\(\)\.catch/],
  pipe: [(s) => z.pipe(s, z.string()), CARRIED],
  transform: [(s) => s.transform<string>((one) => one), CARRIED],
  preprocess: [(s) => z.preprocess((one) => one, s), CARRIED],
  codec: [(s) => z.codec(s, z.string(), { decode: (one) => one, encode: (one) => one }), CARRIED],
  invertCodec: [(s) => z.invertCodec(z.codec(z.string(), s, { decode: String, encode: String })), CARRIED],
  templateLiteral: [
    (s) => z.templateLiteral(['Bearer ', any(s)]),
    /input\.f cannot be sealed.*secret\(z\.templateLiteral/,
  ],
  map: [(s) => z.map(z.string(), s), /input\.f\S* cannot be sealed.*z\.record\(\)/],
  set: [(s) => z.set(s), /input\.f\S* cannot be sealed.*z\.array\(\)/],
  promise: [(s) => z.promise(s), /input\.f cannot be sealed/],
  _function: [(s) => any(z.function({ input: [any(s)], output: z.string() })), /input\.f cannot be sealed/],
  success: [(s) => z.success(s), /input\.f cannot be sealed/],
  property: [
    (s) => z.array(z.string()).check(any(z.property('length', any(s)))),
    /input\.f cannot be sealed.*mark the field/,
  ],
  compile: [(s) => z.compile(z.object({ a: s })), { a: KEY }],
  input: [(s) => z.input(z.object({ a: s })), { a: KEY }],
  output: [(s) => z.output(z.object({ a: s })), { a: KEY }],
  keyof: [(s) => secret(z.keyof(z.object({ [KEY]: s }))), KEY],
  // These hold none.
  ...{ string: texts(z.string()), enum: texts(z.enum([KEY])), nativeEnum: texts(z.nativeEnum({ a: KEY })) },
  ...{ literal: texts(z.literal(KEY)), any: texts(z.any()), unknown: texts(z.unknown()) },
  ...{ custom: texts(z.custom((one) => one === KEY)), stringFormat: texts(z.stringFormat('key', /^sk-/)) },
  ...{ null: [marked(z.null()), null], undefined: [marked(z.undefined()), undefined] },
  ...{
    void: noText(z.void()),
    never: noText(z.never()),
    json: noText(z.json()),
    instanceof: texts(z.instanceof(Date).or(z.string())),
  },
  ...{ number: noText(z.number()), int: noText(z.int()), int32: noText(z.int32()), uint32: noText(z.uint32()) },
  ...{ float32: noText(z.float32()), float64: noText(z.float64()), nan: noText(z.nan()), boolean: noText(z.boolean()) },
  ...{ bigint: noText(z.bigint()), int64: noText(z.int64()), uint64: noText(z.uint64()), symbol: noText(z.symbol()) },
  ...{ date: noText(z.date()), file: noText(z.file()), stringbool: noText(z.stringbool()) },
}

/** Text of some form: marked itself, it is sealed like any other. */
const FORMATS = `
  base64 base64url cidrv4 cidrv6 creditCard cuid cuid2 currencyCode e164 email emoji guid hash hex hostname
  httpUrl iban ipv4 ipv6 jwt ksuid mac nanoid ulid url uuid uuidv4 uuidv6 uuidv7 xid
`
  .trim()
  .split(/\s+/)

/** Functions that make no schema. */
const OTHERS = `
  check clone config decode decodeAsync describe encode encodeAsync endsWith flattenError formatError
  fromJSONSchema function getDiscriminatedOption getErrorMap gt gte includes length lowercase lt lte maxLength
  maxSize memoizer meta mime minLength minSize multipleOf negative nonnegative nonpositive normalize overwrite
  parse parseAsync positive prettifyError properties refine regex registry safeDecode safeDecodeAsync
  safeEncode safeEncodeAsync safeParse safeParseAsync setErrorMap size slugify startsWith superRefine
  toJSONSchema toLowerCase toUpperCase toZod treeifyError trim uppercase validate validateAsync withParser
`
  .trim()
  .split(/\s+/)

test('every function of zod is known here: a new one is to be tried like the others', () => {
  const all = Object.entries(z).filter(([name, value]) => typeof value === 'function' && !/^([A-Z$]|_Zod)/.test(name))
  const known = [...Object.keys(CONSTRUCTORS), ...FORMATS, ...OTHERS]
  expect(all.map(([name]) => name).filter((name) => !known.includes(name))).toEqual([])
})

test.each(Object.entries(CONSTRUCTORS))(
  'a secret in z.%s is sealed, or refused with its name',
  async (_, [build, told]) => {
    const input = () => define(z.object({ question: z.string(), f: build(text()) }))
    if (told instanceof RegExp) {
      expect(input).toThrow(told)
      expect(input).toThrow(/^tried: /)
      return
    }
    const contract = input()
    expect(contract.secrets).not.toEqual([])
    const payload = { question: 'Why?', f: told }
    if (JSON.stringify(told)?.includes(KEY)) expect(secretsIn(contract, payload)).toEqual([KEY])
    expect(await stored(contract, payload)).not.toContain(KEY)
    // And where the payload is nothing else.
    const alone = define(build(text()))
    expect(await stored(alone, told)).not.toContain(KEY)
  },
)

test.each(FORMATS)('text of the form z.%s is sealed', (name) => {
  const make = Reflect.get(z, name) as (...options: unknown[]) => z.ZodType
  const form = name === 'hash' ? make('sha256') : make()
  expect(define(z.object({ f: secret(form) })).secrets).toEqual([['f']])
})

describe('a secret is refused', () => {
  const tree: z.ZodType = z.object({
    key: text(),
    get kids() {
      return z.array(tree)
    },
  })
  const grown = (): z.ZodType => z.object({ key: text(), kids: z.array(z.lazy(grown)) })
  const unknown = z.core.clone(z.object({}), { type: 'hidden', inside: [{ deep: text() }] } as never)
  test.each<[string, () => z.ZodType, RegExp]>([
    [
      'under a transform of the whole',
      () => z.object({ f: text() }).transform((all) => all),
      /input\.f cannot be sealed/,
    ],
    [
      'under a preprocess of the whole',
      () => z.preprocess((all) => all, z.object({ f: text() })),
      /input\.f cannot be/,
    ],
    ['under a catch of the whole', () => z.object({ f: text() }).catch({ f: '' }), /input\.f cannot be sealed/],
    ['under an overwrite', () => z.object({ f: text() }).overwrite((all) => all), /input\.f cannot be.*overwrite/],
    ['as a name', () => z.object({ f: z.record(text(), z.string()) }), /input\.f cannot be sealed.*make it a value/],
    ['among other fields', () => z.object({}).catchall(text()), /input\.\* cannot be sealed.*catchall/],
    ['in what contains itself', () => tree, /input\.\S*key cannot be sealed.*contains itself/],
    ['in what has no end', grown, /nested more than 100 deep, or builds itself anew/],
    [
      'in a type that is not known',
      () => z.object({ f: unknown as never }),
      /input\.f\S* cannot be sealed.*not known here/,
    ],
    [
      'beside a transform in a union',
      () => z.union([z.object({ f: text() }), z.any().transform(({ f }) => ({ g: f }))]),
      /input\.f cannot be sealed.*input has a pipe/,
    ],
    [
      'beside an overwrite in an intersection',
      () =>
        z.intersection(
          z.object({ f: text() }),
          z.looseObject({}).overwrite((all) => all),
        ),
      /input\.f cannot be sealed.*input has an overwrite/,
    ],
    ['when it is an object', () => z.object({ f: secret(z.object({ a: z.string() })) }), NO_TEXT],
    ['when it is a list', () => z.object({ f: secret(z.array(z.string())) }), NO_TEXT],
    ['when it may be a number', () => z.object({ f: secret(z.union([z.string(), z.number()])) }), NO_TEXT],
  ])('%s', (_, input, told) => {
    expect(() => define(input())).toThrow(told)
  })

  test('in a result, which nothing seals', () => {
    const output = z.object({ tokens: z.array(z.object({ token: text() })) })
    expect(() => define(z.object({}), output)).toThrow(
      'tried: output.tokens.*.token is marked secret, and results are not',
    )
  })
})

test.each<[string, (schema: z.ZodObject) => z.ZodType]>([
  ['.strict()', (schema) => schema.strict()],
  ['.loose()', (schema) => schema.loose()],
  ['.extend()', (schema) => schema.extend({ b: z.string() })],
  ['.partial()', (schema) => schema.partial()],
  ['.catchall()', (schema) => schema.catchall(z.string())],
])('a mark is not lost by %s', (_, change) => {
  expect(() => define(z.object({ f: change(secret(z.object({ a: z.string() }))) }))).toThrow(NO_TEXT)
})

test.each<[string, () => z.ZodType]>([
  ['.exclude()', () => secret(z.enum([KEY, 'b'])).exclude(['b'])],
  ['.register()', () => text().register(z.globalRegistry, { title: 'Key' })],
  ['.meta()', () => text().meta({ title: 'Key' })],
  ['.min().trim()', () => secret(z.string()).min(3).trim()],
  ['.brand()', () => text().brand('Key')],
  ['being noted by hand', () => z.string().meta({ secret: true })],
])('nor by %s', async (_, field) => {
  const contract = define(z.object({ f: field() }))
  expect(await stored(contract, { f: KEY })).not.toContain(KEY)
})

test('a mark leaves the schema that it is made of as it was', () => {
  const plain = z.string()
  secret(plain)
  expect(define(z.object({ f: plain })).secrets).toEqual([])
})

describe('a payload is refused', () => {
  const contract = define(z.object({ question: z.any(), key: secret(z.any()), keys: z.array(text()).default([]) }))
  const issuesOf = (payload: unknown) => {
    try {
      parsePayload(contract, payload)
    } catch (error) {
      if (error instanceof InvalidInput) return error.issues
      throw error
    }
    return []
  }

  test.each<[string, unknown]>([
    ['is short', 'k'],
    ['is nearly long enough', '12345'],
    ['is empty', ''],
    ['is a number', 123_456],
    ['is a list', [KEY]],
    ['is hidden in an object', { key: KEY }],
  ])('whose secret %s', (_, key) => {
    const issues = issuesOf({ question: '', key, keys: [KEY, 'short'] })
    expect(issues.map(({ path }) => path)).toEqual(['payload.key', 'payload.keys.1'])
    expect(issues[0]?.message).toStartWith('A secret must be text of at least 6 characters')
    expect(JSON.stringify(issues)).not.toContain(KEY)
  })

  test.each<[string, unknown]>([
    ['as it is', `What is ${KEY}?`],
    ['deep inside', [{ a: { b: [KEY] } }]],
    ['as a name', { [KEY]: 1 }],
    ['in base64', Buffer.from(`key: ${KEY}`).toString('base64')],
  ])('that quotes its secret beside it, %s', (_, question) => {
    const issues = issuesOf({ question, key: KEY })
    expect(issues).toEqual([{ path: 'payload.question', message: expect.stringContaining('quotes a secret') }])
    expect(issuesOf({ question, key: 'another-key' })).toEqual([])
  })

  test('that has too many secrets to look for each', () => {
    const keys = Array.from({ length: 101 }, (_, i) => `secret-${1_000 + i}`)
    expect(issuesOf({ question: '', key: null, keys })).toMatchObject([{ message: expect.stringContaining('100') }])
    expect(issuesOf({ question: '', key: null, keys: [...keys.slice(1), ...keys.slice(1)] })).toEqual([])
  })

  test('in words that do not list the secrets that it may have', () => {
    const listed = define(
      z.object({ keys: z.array(secret(z.enum([KEY, 'another-key']))), key: secret(z.literal(KEY)) }),
    )
    try {
      parsePayload(listed, { keys: ['a wrong one'], key: null })
      expect.unreachable()
    } catch (error) {
      expect((error as InvalidInput).issues).toEqual([
        { path: 'payload.keys.0', message: 'Invalid value' },
        { path: 'payload.key', message: 'Invalid value' },
      ])
    }
  })

  test('in words that do not quote it', () => {
    const picky = define(
      z.object({ key: secret(z.string().refine(() => false, { error: ({ input }) => `not ${input}` })) }),
    )
    expect(() => parsePayload(picky, { key: KEY })).toThrow(InvalidInput)
    try {
      parsePayload(picky, { key: KEY })
    } catch (error) {
      expect((error as InvalidInput).issues).toEqual([{ path: 'payload.key', message: 'not [sealed]' }])
    }
  })
})

test('a secret that may be left out or null stays so', async () => {
  const contract = define(z.object({ f: text().nullish() }))
  for (const payload of [{}, { f: null }]) {
    expect(await mapSecrets(contract, parsePayload(contract, payload), () => 'SEALED')).toEqual(payload)
  }
})

test('what a foreign producer sends in clear is not shown, nor what quotes it', () => {
  const contract = define(z.object({ question: z.string(), key: text() }))
  expect(redact(contract, { question: `Is ${KEY} right?`, key: KEY })).toEqual({
    question: 'Is [sealed] right?',
    key: '[sealed]',
  })
  expect(redact(contract, { question: 'token', key: 'k' })).toEqual({ question: 'token', key: '[sealed]' })
})

describe('a schema that waits for something is refused', () => {
  test.each<[string, z.ZodType]>([
    ['a refinement', z.object({ a: z.string().refine(async () => true) })],
    ['a transform', z.object({ a: z.string().transform(async (one) => one) })],
    ['a preprocess', z.object({ a: z.preprocess(async (one) => one, z.any()) })],
    ['a custom check', z.object({ a: z.custom(async () => true) })],
  ])('when it is defined: %s', (_, schema) => {
    expect(() => define(schema)).toThrow(/tried: input\.a has an async.*in the handler/)
    expect(() => define(z.object({}), schema)).toThrow(/tried: output\.a has an async/)
  })

  test('when it is parsed, where that did not show', () => {
    const contract = define(z.object({ a: z.string().refine(() => Promise.resolve(true) as never) }))
    expect(() => parsePayload(contract, { a: '' })).toThrow(/input of tried has an async.*in the handler/)
  })
})
