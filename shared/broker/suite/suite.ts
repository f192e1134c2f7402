import { describe } from 'bun:test'
import { testBytes } from './bytes.ts'
import { testCancel } from './cancel.ts'
import { testClaim } from './claim.ts'
import { testEnqueue } from './enqueue.ts'
import { testExtend } from './extend.ts'
import { testKinds } from './kinds.ts'
import { testList } from './list.ts'
import { testProperty } from './property.ts'
import { testRemove } from './remove.ts'
import { testReserve } from './reserve.ts'
import { testRetry } from './retry.ts'
import { type Define, define, type Store } from './scene.ts'
import { testSemantics } from './semantics.ts'
import { testSettle } from './settle.ts'
import { testStats } from './stats.ts'
import { testSubscribe } from './subscribe.ts'
import { testSweep } from './sweep.ts'

export type { Store } from './scene.ts'

const PARTS: Record<string, (test: Define) => void> = {
  enqueue: testEnqueue,
  claim: testClaim,
  settle: testSettle,
  extend: testExtend,
  cancel: testCancel,
  remove: testRemove,
  reserve: testReserve,
  retry: testRetry,
  list: testList,
  stats: testStats,
  kinds: testKinds,
  sweep: testSweep,
  'subscribe, watch and emit': testSubscribe,
  'large tasks': testBytes,
  semantics: testSemantics,
}

/**
 * Judges a store by the contract in `broker.ts`: defines all tests that every driver must pass. Each test opens a namespace of its own,
 * moves the clock by hand and does not sleep.
 *
 * @param options.numRuns How many random histories are played against the model; 100 unless told otherwise.
 * @example
 * ```ts
 * testBroker({ name: 'SQLite in memory', open: async ({ now }) => createSqliteBroker({ path: ':memory:', now }) })
 * ```
 */
export function testBroker(store: Store, options: { numRuns?: number } = {}): void {
  describe(store.name, () => {
    for (const [method, part] of Object.entries(PARTS)) describe(method, () => part(define(store)))
    describe('random histories', () => testProperty(store, options.numRuns ?? 100))
  })
}
