import { describe, expect, test } from 'bun:test'
import * as z from 'zod'
import { defineTask } from './define.ts'

const define = (more: object) =>
  defineTask({ kind: 'tried', description: '', input: z.object({}), output: z.null(), ...more })

describe('a kind is refused that says', () => {
  test.each<[string, z.ZodType, string]>([
    ['a Date', z.object({ at: z.date() }), 'output.at'],
    ['a Date after coercion', z.object({ at: z.coerce.date() }), 'output.at'],
    [
      'a Date by a codec',
      z.codec(z.iso.datetime(), z.date(), { decode: (t) => new Date(t), encode: (d) => d.toISOString() }),
      'output',
    ],
    ['a Map in a list', z.array(z.map(z.string(), z.number())), 'output[]'],
    ['a Set in a union', z.union([z.string(), z.set(z.string())]), 'output'],
    ['a BigInt that is optional', z.object({ n: z.bigint().optional() }), 'output.n'],
    ['a BigInt literal', z.literal(1n), 'output'],
    ['a symbol in a record', z.record(z.string(), z.symbol()), 'output.*'],
    ['NaN', z.nan(), 'output'],
    ['undefined in a list', z.array(z.string().optional()), 'output[]'],
    ['undefined in a tuple', z.tuple([z.string(), z.undefined()]), 'output.1'],
    [
      'a Date behind a default, a catch and readonly',
      z.date().default(new Date(0)).catch(new Date(0)).readonly(),
      'output',
    ],
    ['a Date in what is lazy', z.lazy(() => z.object({ at: z.date() })), 'output.at'],
    ['a Date in other fields', z.object({}).catchall(z.date()), 'output.*'],
  ])('%s, with the field named', (_, output, field) => {
    expect(() => define({ output })).toThrow(`tried: ${field} cannot be stored`)
    expect(() => define({ input: output })).toThrow(`tried: ${field.replace('output', 'input')} cannot be stored`)
  })

  test.each<[string, object, string]>([
    ['no time limit', { timeoutMs: undefined }, 'timeoutMs'],
    ['a time limit of nothing', { timeoutMs: 0 }, 'timeoutMs'],
    ['half a run at once', { concurrency: 0.5 }, 'concurrency'],
    ['no attempts', { retry: { maxAttempts: 0 } }, 'retry.maxAttempts'],
    ['attempts in words', { retry: { maxAttempts: 'three' } }, 'retry.maxAttempts'],
    ['less than no delay', { retry: { backoffMs: -1 } }, 'retry.backoffMs'],
  ])('%s', (_, rules, name) => {
    expect(() => define(rules)).toThrow(`tried: ${name} must be a whole number`)
  })
})

test('what has a form in JSON is taken', () => {
  type Tree = { name: string; children: Tree[] }
  const tree: z.ZodType<Tree> = z.object({
    name: z.string(),
    get children() {
      return z.array(tree)
    },
  })
  const fine = [
    ...[z.void(), z.undefined(), z.null(), z.string().optional(), z.any(), z.unknown(), z.never()],
    ...[
      z.enum(['a']),
      z.literal(['a', 1, null]),
      z.templateLiteral(['a', z.number()]),
      z.tuple([z.string()], z.number()),
    ],
    ...[
      z.record(z.string(), z.number()),
      z.intersection(z.object({ a: z.string() }), z.object({ b: z.string() })),
      tree,
    ],
    ...[z.string().transform(Number), z.preprocess(String, z.string()), z.coerce.number(), z.iso.datetime()],
  ]
  const node = z.object({
    get next() {
      return node.optional()
    },
  })
  for (const input of [node, tree]) expect<unknown>(define({ input }).input).toBe(input)
  for (const output of [...fine, node]) expect<unknown>(define({ output }).output).toBe(output)
})
