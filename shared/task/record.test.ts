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

  test.each(['', 'rubbish', '[]', '{}', '{"task_id":7}', '{"task_id":""}'])('%p is no envelope', (text) => {
    expect(readEnvelope(text)).toBeNull()
  })
})
