import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { PermanentError } from '#shared/task/errors.ts'
import { stores } from '#shared/test/stores.ts'
import { add, adder, kind, type WorkerScene, workerScene } from '#shared/test/worker-scene.ts'
import { type Implementation, implement } from '#shared/worker/implement.ts'

const text = readFileSync(new URL('../docs/handlers.md', import.meta.url), 'utf8')

/** The examples of the page, by the name in their first line. */
const examples = new Map(
  Array.from(text.matchAll(/```ts\n\/\/ (\S+)\n([\s\S]*?)```/g), ([, name = '', code = '']) => [name, code] as const),
)

/** What each example must give, and how often its effects ran. */
const expected: Record<string, { payload?: unknown; result: unknown; effects: string[] }> = {
  order: { payload: { items: ['a', 'bb'] }, result: 'receipt for 3', effects: ['charge 3'] },
  step: { result: { id: expect.any(String), at: expect.any(Number), sum: 3 }, effects: [] },
  'step-failure': { result: 'mailed: Sorry: no stock', effects: ['reserve'] },
  branches: {
    payload: { items: ['a', 'b'] },
    result: ['booking of quote of a', 'booking of quote of b'],
    effects: ['book a', 'book b', 'quote a', 'quote b'],
  },
  outside: { payload: { items: ['a', 'bb'] }, result: [2, 3], effects: ['fetch a', 'fetch bb'] },
  race: { result: 'late', effects: ['cancel'] },
  handled: { result: ['sold out', 'well'], effects: ['broken', 'flaky', 'flaky'] },
}

test('every example of the page is tried', () => {
  expect([...examples.keys()].toSorted()).toEqual(Object.keys(expected).toSorted())
})

const order = kind('order')
const names = ['price', 'mail', 'slow', 'broken', 'flaky'] as const
const kinds = Object.fromEntries(names.map((name) => [name, kind(name)])) as Record<
  (typeof names)[number],
  ReturnType<typeof kind>
>

describe.each(stores)('the examples of docs/handlers.md on $name', (store) => {
  let scene: WorkerScene
  beforeEach(() => {
    scene = workerScene(store)
  })
  afterEach(() => scene.broker.close())

  for (const [name, code] of examples) {
    for (const way of ['in place', 'from history at each turn']) {
      test(`${name}, ${way}`, async () => {
        const { clock, create, recordOf, retry, worker } = scene
        const effects: string[] = []
        function did<T>(what: string, value?: T): T | undefined {
          effects.push(what)
          return value
        }
        let isBroken = true
        const around = {
          ...{ implement, order, add, ...kinds },
          charge: (total: number) => did(`charge ${total}`, `receipt for ${total}`),
          reserve() {
            did('reserve')
            throw new Error('no stock')
          },
          quoteOf: async (item: string) => did(`quote ${item}`, `quote of ${item}`),
          book: (item: string, quote: string) => did(`book ${item}`, `booking of ${quote}`),
          fetchQuote: async (item: string) => did(`fetch ${item}`, item.length),
          cancelOrder: () => did('cancel'),
        }
        const list = [
          handlerOf(code, around),
          adder,
          implement(kinds.price, (item) => item.length),
          implement(kinds.mail, (mail) => `mailed: ${mail.text}`),
          implement(kinds.broken, () => {
            did('broken')
            throw new PermanentError('gone')
          }),
          implement(kinds.flaky, () => {
            did('flaky')
            if (isBroken) throw new PermanentError('not now')
            return 'well'
          }),
        ]
        const { payload, result, effects: seen } = expected[name] ?? { result: null, effects: [] }
        const id = await create(order, payload)
        for (let turn = 0; turn < 30; turn++) {
          await worker(list).drain(way === 'in place' ? {} : { maxTasks: 1 })
          const [stored] = await scene.broker.get([id])
          if (stored?.live?.state === 'waiting') clock.advance(86_400_000)
          if (name !== 'handled' || !isBroken || stored?.live) continue
          isBroken = false
          await retry(id, order, kinds.broken, kinds.flaky)
        }
        const record = await recordOf(id)
        expect(record.content_type ? JSON.parse(record.result) : record.result).toEqual(result)
        expect(effects.toSorted()).toEqual(seen)
      })
    }
  }
})

/** The handler that an example exports, with the names that it uses. */
function handlerOf(code: string, around: Record<string, unknown>): Implementation {
  const plain = new Bun.Transpiler({ loader: 'ts' }).transformSync(
    code.replace('export default', 'globalThis.example ='),
  )
  const run = new Function(...Object.keys(around), `${plain.replace('globalThis.example =', 'return')}`)
  return run(...Object.values(around))
}
