/** What foreign programs may put into the store. */
import fc from 'fast-check'
import { bytesOf, fieldsText, jsonText, oddText } from './arbitrary.ts'

const payloads = fieldsText(
  ['num1', 'num2', 'n', 'topic', 'question', 'api_key', 'model'],
  fc.oneof(fc.constantFrom('1', '2', '"a"'), jsonText),
)
const envelopeText = fc.oneof(
  jsonText,
  fieldsText(
    [
      'task_id',
      'task_id',
      'payload',
      'kind',
      'v',
      'created_at',
      'priority',
      'max_attempts',
      'timeout_ms',
      'retention_s',
      'parent',
      'traceparent',
      '__proto__',
    ],
    fc.oneof(
      jsonText,
      payloads,
      fc.constantFrom('1', '"high"', '{"id":"a","kind":"sum"}', '{"num1":1,"num2":2}', '{"n":2}'),
    ),
  ),
  fc.tuple(oddText, payloads).map(([id, payload]) => `{"task_id":${JSON.stringify(id)},"payload":${payload}}`),
  fc.tuple(oddText, payloads).map(([id, payload]) => `{"task_id":"${id}","v":1,"kind":"sum","payload":${payload}}`),
)
/** An id of bytes that are no text. */
const badIds = fc
  .uint8Array({ minLength: 1, maxLength: 8 })
  .map((id) => Buffer.concat([Buffer.from('{"task_id":"'), id, Buffer.from('","payload":{"num1":1,"num2":2}}')]))

const recordText = fc.oneof(
  jsonText,
  fc
    .tuple(
      fieldsText(
        [
          'result',
          'status_code',
          'content_type',
          'kind',
          'status',
          'error',
          'payload',
          'attempt',
          'created_at',
          'finished_at',
          'parent',
          'calls',
          'steps',
          'step',
          'retention_s',
          '__proto__',
        ],
        fc.oneof(
          jsonText,
          fc.constantFrom(
            '9007199254740991',
            '1',
            '"sum"',
            '"sequence"',
            '"failed"',
            '"application/json"',
            '{"id":"x","kind":"sum"}',
            '{"type":"a","message":"b"}',
          ),
        ),
      ),
      fc.constantFrom('200', '204', '304', '404', '0', '99', '1e9', '"200"', '-0', 'null'),
    )
    .map(([fields, code]) => `{"result":"r","status_code":${code}${fields === '{}' ? '}' : `,${fields.slice(1)}`}`),
)

/** To a queue. */
export const queueBytes: fc.Arbitrary<Uint8Array> = fc.oneof(
  { weight: 4, arbitrary: bytesOf(envelopeText) },
  { weight: 1, arbitrary: badIds },
)
/** To the hash of final records. */
export const recordBytes: fc.Arbitrary<Uint8Array> = bytesOf(recordText)
