import { describe, expect, test } from 'bun:test'
import { chat } from '#services/workers/chat/contract.ts'
import { sum } from '#services/workers/sum/contract.ts'
import { buildRecord, CANCELLED_STATUS, cancelledRecord, decodeResult, readEnvelope, readRecord } from './record.ts'

const run = { attempt: 1, calls: 0, steps: 0, order: '', startedAt: 5, finishedAt: 9 }
const succeeded = { ...run, state: 'succeeded', statusCode: 200 } as const
const envelope = { task_id: 't', kind: 'sum', payload: { num1: 1, num2: 2 }, created_at: 1 }

describe('buildRecord', () => {
  test('holds all that is known of the end, and nothing undefined', () => {
    const record = buildRecord({ ...succeeded, contract: sum, envelope, result: 3 })
    expect(Object.values(record)).not.toContain(undefined)
    expect(record).toEqual({
      result: '3',
      content_type: 'application/json',
      status_code: 200,
      kind: 'sum',
      payload: { num1: 1, num2: 2 },
      attempt: 1,
      created_at: 1,
      started_at: 5,
      finished_at: 9,
    })
  })

  test.each([['text'], [''], ['{"a":1}'], [8], [null], [false], [{ a: [1] }]])(
    'the result %j comes back as it was',
    (result) => {
      const text = JSON.stringify(buildRecord({ ...succeeded, contract: sum, envelope, result }))
      const record = readRecord(text)
      expect(record && decodeResult(record)).toEqual(result)
    },
  )

  test('no result is null', () => {
    expect(buildRecord({ ...succeeded, envelope })).toMatchObject({ result: 'null', content_type: 'application/json' })
  })

  test('a failure has its message as text', () => {
    const error = { type: 'permanent', message: 'Invalid API key' }
    const record = buildRecord({ ...run, state: 'failed', statusCode: 400, envelope, contract: sum, error })
    expect(record).toMatchObject({ result: 'Invalid API key', status_code: 400, status: 'failed', error })
    expect(record).not.toHaveProperty('content_type')
  })

  test('secrets are redacted, and without a contract the payload is left out', () => {
    const secret = { task_id: 't', kind: 'chat', payload: { question: 'Why?', api_key: 'sk-1' } }
    expect(buildRecord({ ...succeeded, contract: chat, envelope: secret }).payload).toEqual({
      question: 'Why?',
      api_key: '[sealed]',
    })
    expect(JSON.stringify(buildRecord({ ...succeeded, envelope: secret }))).not.toContain('sk-1')
  })

  test('a cancelled one says so', () => {
    expect(cancelledRecord({ ...run, envelope })).toMatchObject({
      status: 'cancelled',
      status_code: CANCELLED_STATUS,
      error: { type: 'cancelled' },
    })
  })
})

describe('readRecord', () => {
  test('takes what foreign workers write', () => {
    expect(readRecord('{"result":"8.0","status_code":200}')).toEqual({ result: '8.0', status_code: 200 })
    expect(readRecord('{"result":8,"status_code":"200"}')).toEqual({
      result: '8',
      status_code: 200,
      content_type: 'application/json',
    })
    expect(readRecord('{"result":null,"status_code":200}')).toMatchObject({ result: 'null' })
  })

  test('takes a status code that is an object for none, whatever that says of itself', () => {
    for (const code of ['{"toString":5}', '{"valueOf":{},"toString":null}', '{"__proto__":null}', '[200]', 'true']) {
      expect(readRecord(`{"result":"x","status_code":${code}}`)).toBeNull()
    }
  })

  test('leaves out numbers of calls that nobody could look through', () => {
    const record = { result: 'x', status_code: 500, calls: Number.MAX_SAFE_INTEGER, steps: Number.MAX_SAFE_INTEGER }
    expect(readRecord(JSON.stringify(record))).toEqual({ result: 'x', status_code: 500 })
  })

  test('takes nothing that is beyond the limits of the API', () => {
    const levels = (n: number) => `${'['.repeat(n)}${']'.repeat(n)}`
    const read = (fields: string) => readRecord(`{"status_code":200,${fields}}`)
    expect(read(`"result":${levels(100)}`)).toMatchObject({ content_type: 'application/json' })
    expect(read(`"result":${levels(101)}`)).toBeNull()
    expect(read(`"result":"x","payload":${levels(20_000)}`)).toBeNull()
    expect(read(`"result":"${'x'.repeat(1_048_576)}"`)).toMatchObject({ status_code: 200 })
    expect(read(`"result":"${'x'.repeat(1_048_577)}"`)).toBeNull()
    expect(read(`"result":"${'é'.repeat(524_289)}"`)).toBeNull()
    expect(read(`"result":"x","more":"${'x'.repeat(8 * 1_048_576)}"`)).toBeNull()
    const limits = { max_attempts: 1e9, timeout_ms: 0, retention_s: 1e12, traceparent: 'x'.repeat(1e5) }
    expect(readRecord(JSON.stringify({ result: 'x', status_code: 200, ...limits }))).toEqual({
      ...{ result: 'x', status_code: 200 },
    })
  })

  test('a result in JSON that is nested beyond all measure stays text', () => {
    const record = (levels: number) => ({
      ...{ result: `${'['.repeat(levels)}${']'.repeat(levels)}`, status_code: 200, content_type: 'application/json' },
    })
    expect(decodeResult(record(1_000))).toBeArray()
    expect(decodeResult(record(1_001))).toBeString()
  })

  test('leaves out what has the wrong type, or is not ours', () => {
    const text =
      '{"result":"x","status_code":200,"status":"done","attempt":-1,"error":"e","parent":{"id":1},"__proto__":{"a":1},"extra":1}'
    expect(readRecord(text)).toEqual({ result: 'x', status_code: 200 })
  })

  test.each([
    '',
    'rubbish',
    'null',
    '[]',
    '7',
    '{}',
    '{"result":"x"}',
    '{"status_code":200}',
    '{"result":"x","status_code":"ok"}',
    '{"result":"x","status_code":99}',
    '{"result":"x","status_code":199}',
    '{"result":"x","status_code":600}',
    '{"result":NaN,"status_code":200}',
  ])('%p is no record', (text) => {
    expect(readRecord(text)).toBeNull()
  })
})

describe('readEnvelope', () => {
  test('takes what foreign producers send', () => {
    expect(readEnvelope('{"task_id":"a1","payload":{"num1":3}}')).toEqual({ task_id: 'a1', payload: { num1: 3 } })
    expect(readEnvelope('{"task_id":"a1","priority":"urgent","max_attempts":2}')).toEqual({
      task_id: 'a1',
      payload: undefined,
      max_attempts: 2,
    })
  })

  test('takes a parent, a kind and v of what Tasker queued alone, which begins with id and v', () => {
    const more = '"kind":"sum","payload":1,"parent":{"id":"p","kind":"sequence"},"given":"x"'
    expect(readEnvelope(`{"task_id":"p.0","v":1,${more}}`)).toMatchObject({ parent: { id: 'p' }, kind: 'sum', v: 1 })
    for (const text of [
      `{"task_id":"p.0",${more},"v":1}`,
      `{"v":1,"task_id":"p.0",${more}}`,
      `{"task_id":"p.0", "v":1,${more}}`,
    ]) {
      expect(readEnvelope(text)).toEqual({ task_id: 'p.0', payload: 1 })
    }
  })

  test('leaves nothing but the id of what is beyond the limits of the API', () => {
    for (const more of ['"max_attempts":0', '"timeout_ms":1e10', `"deep":${'['.repeat(102)}${']'.repeat(102)}`]) {
      expect(readEnvelope(`{"task_id":"a","payload":1,${more}}`)).toEqual({ task_id: 'a', payload: undefined })
    }
  })

  test.each(['', 'rubbish', '[]', '{}', '{"task_id":7}', '{"task_id":""}'])('%p is no envelope', (text) => {
    expect(readEnvelope(text)).toBeNull()
  })
})
