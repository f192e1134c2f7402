import { appendFileSync } from 'node:fs'
import sequenceWorker from '#services/workers/sequence/worker.ts'
import sumWorker from '#services/workers/sum/worker.ts'
import { ChildFailed, PermanentError } from '#shared/task/errors.ts'
import { type Context, type Implementation, implement } from '#shared/worker/implement.ts'
import { branches, brittle, doomed, flaky, MANY_ATTEMPTS, rescue, sequence, slow, steps, sum, tree } from './kinds.ts'

/** The handlers of all kinds of a run. Every step that runs leaves a line in `stepsFile`: its task, its name, what it gave. */
export function chaosImplementations(stepsFile: string): readonly Implementation[] {
  return [
    { ...sumWorker, contract: sum },
    { ...sequenceWorker, contract: sequence },
    implement(tree, async ({ depth, width, n }, ctx) => {
      if (depth === 0) return ctx.call(sequence, { n }, { maxAttempts: MANY_ATTEMPTS })
      const parts = await ctx.map(
        tree,
        Array.from({ length: width }, () => ({ depth: depth - 1, width, n })),
      )
      return parts.reduce((sum, part) => sum + part, 0)
    }),
    implement(flaky, ({ fails, value }, ctx) => {
      if (ctx.attempt <= fails) throw new Error(`Attempt ${ctx.attempt} fails.`)
      return value
    }),
    implement(doomed, ({ reason }) => {
      throw new PermanentError(reason, { code: 'doomed', statusCode: 418 })
    }),
    implement(rescue, async ({ reason }, ctx) => {
      try {
        await ctx.call(doomed, { reason })
        return 'nothing to catch'
      } catch (error) {
        if (!(error instanceof ChildFailed)) throw error
        return `caught ${error.code}: ${error.message}`
      }
    }),
    implement(slow, takesItsTime),
    implement(brittle, takesItsTime),
    implement(steps, async ({ count, napMs }, ctx) => {
      const given: string[] = []
      for (let i = 0; i < count; i++) {
        const value = await ctx.step(`step ${i}`, () => {
          const made = crypto.randomUUID()
          appendFileSync(stepsFile, `${JSON.stringify({ id: ctx.taskId, step: `step ${i}`, value: made })}\n`)
          return made
        })
        given.push(value)
        if (napMs > 0) await ctx.sleep(napMs)
      }
      return given
    }),
    implement(branches, async ({ count, napMs }, ctx) => {
      const own = await Promise.all(
        Array.from({ length: count }, async (_, i) => {
          const draw = await ctx.step('draw', () => Math.floor(Math.random() * 1_000_000))
          const winner = await Promise.race([
            ctx.call(slow, { ms: napMs, value: i }, { maxAttempts: MANY_ATTEMPTS }).then((value) => value === i),
            ctx.sleep(napMs).then(() => true),
          ])
          const booked = await ctx.step('book', () => `${i}: ${draw}`)
          const sumOfBoth = await ctx.call(sum, { num1: draw, num2: i }, { maxAttempts: MANY_ATTEMPTS })
          return winner && booked === `${i}: ${draw}` && sumOfBoth === draw + i
        }),
      )
      return own.filter(Boolean).length
    }),
  ]
}

async function takesItsTime({ ms, value }: { ms: number; value: number }, ctx: Context): Promise<number> {
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(resolve, ms)
    ctx.signal.addEventListener('abort', () => {
      clearTimeout(timer)
      reject(ctx.signal.reason)
    })
  })
  return value
}
