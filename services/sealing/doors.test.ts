/** What is kept and said of a secret that comes in twice, does not fit, or finds no store: nothing, in any form. */
import { describe, expect, test } from 'bun:test'
import { durableStores } from '#shared/test/durable-stores.ts'
import { kinds, SECRET, useScene } from './scene.ts'

describe.each(durableStores)('on $name a secret is in no file, no answer and no log', ({ start }) => {
  const stage = useScene(start)

  describe.each(kinds.filter(({ hasSecrets }) => hasSecrets))('of $kind', ({ kind, payload }) => {
    test('when it is created again, or with another payload', async () => {
      const key = { 'Idempotency-Key': 'order-1' }
      const { status, id } = await stage.scene.post(`/${kind}`, { payload }, key)
      expect(status).toBe(201)
      expect((await stage.scene.post(`/${kind}`, payload, key)).id).toBe(id)
      const other = Object.fromEntries(
        Object.entries(payload).map(([name, value]) => [
          name,
          name === 'question' || name === 'topic' ? 'else' : value,
        ]),
      )
      expect((await stage.scene.post(`/${kind}`, other, key)).status).toBe(409)
      await stage.scene.look(id)
    })

    test('when the request is refused', async () => {
      const misfits = [
        { secret: SECRET },
        [SECRET],
        { ...payload, api_key: [SECRET] },
        { api_key: { key: SECRET } },
        JSON.stringify(SECRET),
      ]
      const { unknown_field: _, ...known } = payload
      const swapped = Object.keys(known).flatMap((name) => [
        { ...payload, [name]: { nested: SECRET } },
        { ...payload, [name]: [SECRET] },
      ])
      const options = ['priority', 'run_at', 'delay_ms', 'max_attempts'].map((name) => ({ [name]: SECRET }))
      for (const body of [
        ...misfits,
        ...swapped,
        ...options.map((option) => ({ payload, options: option })),
        { payload, options: SECRET },
        { payload: { ...payload, model: [SECRET] } },
      ]) {
        expect((await stage.scene.post(`/${kind}`, body)).status).toBe(422)
        expect((await stage.scene.post(`/${kind}/batch`, { payloads: [payload, body] })).status).toBe(422)
      }
      const json = JSON.stringify({ payload })
      const at = json.indexOf(JSON.stringify(SECRET))
      const broken = [at, at + 5, at + 14, json.length - 1].map((end) => json.slice(0, end))
      for (const body of [...broken, `${json}x`, json.replace('"sk-', 'sk-'), json.replace('"}', '\u0001"}')]) {
        expect((await stage.scene.post(`/${kind}`, body)).status).toBe(400)
      }
      const refusals: [status: number, path: string, body: string, headers: Record<string, string>][] = [
        [413, `/${kind}`, json + ' '.repeat(2 ** 20), {}],
        [415, `/${kind}`, json, { 'Content-Type': 'text/plain' }],
        [415, `/${kind}`, json, { 'Content-Encoding': 'gzip' }],
        [400, `/${kind}`, json, { 'Idempotency-Key': '' }],
        [400, `/${kind}/batch`, json, { 'Idempotency-Key': 'k' }],
        [401, `/${kind}`, json, { Authorization: `Bearer ${SECRET.replaceAll('"', '')}` }],
        [404, '/nope', json, {}],
      ]
      for (const [status, path, body, headers] of refusals) {
        expect((await stage.scene.post(path, body, headers)).status).toBe(status)
      }
      await stage.scene.look()
    })

    test('when the store fails', async () => {
      await stage.scene.store.broker.close()
      expect((await stage.scene.post(`/${kind}`, { payload })).status).toBe(503)
      expect((await stage.scene.post(`/${kind}`, { payload }, { 'Idempotency-Key': 'k' })).status).toBe(503)
    })
  })
})
