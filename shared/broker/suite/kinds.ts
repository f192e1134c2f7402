import { expect } from 'bun:test'
import { type Define, end } from './scene.ts'

export function testKinds(test: Define): void {
  test('gives kinds that were noted as soon as they have tasks, and keeps them in every state', async ({
    broker,
    clock,
    add,
    run,
  }) => {
    expect(await broker.kinds([])).toEqual([])
    await broker.kinds(['sum', 'chat', 'sequence', 'late', 'idle'])
    const sum = await run()
    await add({ kind: 'chat' })
    await broker.settle([end(await run({ kind: 'sequence' }))])
    await add({ kind: 'late', dueAt: clock.now() + 1_000 })
    await broker.settle([end(sum, { state: 'failed' })])
    const known = await broker.kinds([])
    expect(known).toEqual(expect.arrayContaining(['sum', 'chat', 'sequence', 'late']))
    expect(new Set(known).size).toBe(known.length)
    // Whether a kind without tasks is still named is the store's own business.
    expect(known.filter((kind) => !['sum', 'chat', 'sequence', 'late', 'idle'].includes(kind))).toEqual([])
  })

  test('notes the same kinds again, and others beside them', async ({ broker, add }) => {
    await broker.kinds(['sum'])
    await broker.kinds(['sum', 'chat'])
    await add()
    await add({ kind: 'chat' })
    expect((await broker.kinds(['sum'])).toSorted()).toEqual(['chat', 'sum'])
  })

  test('names no step: it is no task, and has no kind', async ({ broker, run }) => {
    const parent = await run({ kind: 'sequence' })
    await broker.kinds(['sequence'])
    const records = [{ id: `${parent.id}.0`, record: 'step' }]
    const call = { type: 'call', children: [], calls: 1, steps: 1, order: '', park: true, awaits: null } as const
    await broker.settle([{ ...parent, ...call, records, wakeAt: null }])
    expect(await broker.kinds([])).toEqual(['sequence'])
  })

  test(
    'gives what another connection noted',
    async ({ broker, add, again }) => {
      await broker.kinds(['chat'])
      await add({ kind: 'chat' })
      expect(await (await again()).kinds([])).toEqual(['chat'])
    },
    'secondConnection',
  )
}
