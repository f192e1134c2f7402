import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { play } from '#shared/test/programs/play.ts'
import { programs } from '#shared/test/programs/program.ts'
import { stores } from '#shared/test/stores.ts'

/** How many programs are run on each store; `PROGRAMS` says otherwise, and `PROGRAMS_SEED` which. */
const RUNS = Number(process.env['PROGRAMS'] || 150)
const seed = process.env['PROGRAMS_SEED'] ? { seed: Number(process.env['PROGRAMS_SEED']) } : {}

describe.each(stores)('random handlers on $name', (store) => {
  test(
    'give each branch its own results, whatever happens to their workers',
    async () => {
      const property = fc.asyncProperty(programs, fc.integer(), async (program, faults) => {
        expect(await play(store.open, program, faults)).toBeNull()
      })
      await fc.assert(property, { numRuns: RUNS, ...seed, interruptAfterTimeLimit: RUNS * 400 })
    },
    RUNS * 500,
  )
})
