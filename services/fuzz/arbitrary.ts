/** What the fuzz tests throw at the doors: all seeded, so that a run can be repeated. */
import fc from 'fast-check'

const runs = Number(process.env['FUZZ_RUNS'] || 150)

/** How many runs a property gets: `FUZZ_RUNS`, or a share that the gate has time for. Another `FUZZ_SEED` gives other runs. */
export function bounded(share = 1): { numRuns: number; seed: number; endOnFailure: boolean } {
  return { numRuns: Math.ceil(runs * share), seed: Number(process.env['FUZZ_SEED'] || 2026), endOnFailure: true }
}

/** Long enough for a run that `FUZZ_RUNS` prolongs. */
export const TIMEOUT_MS = 10_000 + runs * 100

/** Texts that programs stumble over. */
export const oddText: fc.Arbitrary<string> = fc.oneof(
  fc.constantFrom(
    ...[
      '',
      ' ',
      '.',
      '..',
      '/',
      '\\',
      '\0',
      '\n',
      '\r\n',
      '\u007f',
      '\ufeff',
      '\ud800',
      '\udfff',
      '\u202e',
      '💥',
      'é',
      'e\u0301',
    ],
    ...[
      '__proto__',
      'constructor',
      'prototype',
      'toString',
      'hasOwnProperty',
      'null',
      'undefined',
      'NaN',
      '-0',
      '1e400',
    ],
    ...[
      'tasks',
      'tasks:live',
      'sum_task_queue',
      '{1}',
      '{0}:tasks',
      '*',
      '%',
      '%00',
      '%s',
      '$1',
      '$&',
      "'; --",
      '<b>',
      '{{x}}',
    ],
    ...['a.0', 'a..0', '.0', 'a.', 'a.-1', 'a.0.1e9', '0', '-1', '9007199254740993', '1,2', 'a b', 'true'],
    ...['x'.repeat(300), 'ü'.repeat(5_000), '01a20bb8-0f86-7c4c-9c33-993d68f9b495'],
  ),
  fc.string({ unit: 'binary', maxLength: 30 }),
  fc.string({ maxLength: 30 }),
)

const oddNumber = fc.constantFrom(
  ...[
    '-0',
    '0',
    '1e400',
    '-1e400',
    '1e-400',
    '9007199254740993',
    '0.1',
    '1E5',
    '123456789012345678901234567890',
    '-1',
    '2147483648',
  ],
)

/** JSON texts of values: also those that `JSON.stringify` cannot make, such as huge numbers, duplicate and prototype keys. */
export const jsonText: fc.Arbitrary<string> = fc.letrec<{ value: string }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    fc.constantFrom('null', 'true', 'false', '""', '{}', '[]', '"\\ud800"', '"\\u0000"'),
    oddNumber,
    oddText.map((text) => JSON.stringify(text)),
    fc.array(tie('value'), { maxLength: 4 }).map((items) => `[${items.join()}]`),
    fc
      .array(fc.tuple(oddText, tie('value')), { maxLength: 4 })
      .map((fields) => `{${fields.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join()}}`),
  ),
})).value

/** Objects with fields that somebody knows, each odd in its own way, some of them twice. */
export function fieldsText(names: readonly string[], value: fc.Arbitrary<string> = jsonText): fc.Arbitrary<string> {
  const field = fc.tuple(fc.constantFrom(...names), value).map(([name, text]) => `${JSON.stringify(name)}:${text}`)
  return fc.array(field, { maxLength: 8 }).map((fields) => `{${fields.join()}}`)
}

const nested = fc
  .tuple(fc.constantFrom(99, 100, 101, 5_000, 100_000), fc.constantFrom('[', '{"a":'))
  .map(([levels, open]) => `${open.repeat(levels)}1${(open === '[' ? ']' : '}').repeat(levels)}`)

/** Bytes that may or may not be JSON. */
export function bytesOf(text: fc.Arbitrary<string>): fc.Arbitrary<Uint8Array> {
  const utf8 = (json: string) => new TextEncoder().encode(json)
  return fc.oneof(
    { weight: 6, arbitrary: text.map(utf8) },
    { weight: 1, arbitrary: nested.map(utf8) },
    { weight: 1, arbitrary: text.map((json) => utf8(`\ufeff${json}`)) },
    { weight: 1, arbitrary: text.map((json) => new Uint8Array(Buffer.from(json, 'utf16le'))) },
    { weight: 1, arbitrary: text.map((json) => new Uint8Array(Bun.gzipSync(json))) },
    { weight: 1, arbitrary: fc.tuple(text, fc.nat(200)).map(([json, end]) => utf8(json.slice(0, end))) },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }) },
  )
}
