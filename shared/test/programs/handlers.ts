import * as z from 'zod'
import { type Clock, nextTurn } from '#shared/runtime/clock.ts'
import { defineTask } from '#shared/task/define.ts'
import { PermanentError } from '#shared/task/errors.ts'
import { canonicalJson, digestOf } from '#shared/task/json.ts'
import { type Context, type Implementation, implement } from '#shared/worker/implement.ts'
import type { Output, Program } from './program.ts'

/** Attempts that no dying worker uses up, for those whose end their parents see. */
const retry = { maxAttempts: 60, backoffMs: 5, maxBackoffMs: 10 }
const anyJson = z.any()

const leaf = defineTask({ kind: 'leaf', description: 'A leaf.', input: anyJson, output: anyJson, retry })
const rules = { description: 'Runs a program.', input: anyJson, output: anyJson, timeoutMs: 3_600_000 }
export const program = defineTask({ kind: 'program', ...rules, retry: { ...retry, maxAttempts: 8 } })
const part = defineTask({ kind: 'part', ...rules, retry })
export const contracts = { leaf, program, part }

/** What every effect and every leaf did: its place in the program, what it was given, and whether it failed. */
export interface Execution {
  label: string
  of: string
}

/** What all workers of one scene have in common: the outside world. */
export interface World {
  clock: Clock
  executions: Execution[]
  /** How often the code of a place was run. */
  runs: Map<string, number>
}

/** What stands for a value where it is given to the next. */
export const refOf = (value: unknown): string => digestOf(canonicalJson(value))

/** Executes a leaf: fails in its first executions, if it is to. */
function execute(world: World, label: string, of: string, failing: { fails: number; isTransient: boolean }): Output {
  const n = world.executions.push({ label, of }) - 1
  const run = (world.runs.get(label) ?? 0) + 1
  world.runs.set(label, run)
  if (run > failing.fails) return { at: label, n }
  const text = `${label}#${n}`
  throw failing.isTransient ? new Error(text) : new PermanentError(text)
}

async function pass(clock: Clock, ms: number): Promise<void> {
  // Some end in the very turn in which they began.
  if (ms === 0) return
  if (ms < 3) await nextTurn()
  else await clock.sleep(ms)
}

export function createImplementations(world: World): Implementation[] {
  return [
    implement(leaf, async ({ label, of, ms, fails, isTransient }) => {
      await pass(world.clock, ms)
      return execute(world, label, of, { fails, isTransient })
    }),
    implement(program, ({ body, of }, ctx) => run(world, ctx, body, of)),
    implement(part, ({ body, of }, ctx) => run(world, ctx, body, of)),
  ]
}

async function run(world: World, ctx: Context, node: Program, of: string): Promise<Output> {
  const branch = (part: Program) => run(world, ctx, part, of)
  switch (node.type) {
    case 'step':
      return (await ctx.step(node.label, async () => {
        await pass(world.clock, node.ms)
        return execute(world, node.label, of, node)
      })) as Output
    case 'call': {
      const { label, ms, fails, isTransient } = node
      return await ctx.call(leaf, { label, of, ms, fails, isTransient })
    }
    case 'map': {
      const { label, size, fails } = node
      const payloads = Array.from({ length: size }, (_, i) => ({
        ...{ label: `${label}.${i}`, of, ms: i, fails: i === 1 ? fails : 0, isTransient: false },
      }))
      return { list: await ctx.map(leaf, payloads) }
    }
    case 'sleep':
      await ctx.sleep(node.ms)
      return { slept: node.label }
    case 'flaky': {
      const before = world.runs.get(node.label) ?? 0
      world.runs.set(node.label, before + 1)
      if (before < node.fails) throw new Error(`${node.label} broke`)
      return { slept: node.label }
    }
    case 'sub':
      return await ctx.call(part, { body: node.body, of })
    case 'try':
      try {
        return { tried: await branch(node.body) }
      } catch (error) {
        const text = textOf(error)
        return { error: text, rescued: await run(world, ctx, node.rescue, refOf({ error: text })) }
      }
    case 'seq': {
      const list: Output[] = []
      for (const part of node.parts) list.push(await run(world, ctx, part, list.length > 0 ? refOf(list.at(-1)) : of))
      return { list }
    }
    case 'all':
      return { list: await Promise.all(node.parts.map(branch)) }
    case 'race':
      return Promise.race(node.parts.map(async (part, won) => ({ won, value: await branch(part) })))
    case 'any':
      return Promise.any(node.parts.map(async (part, won) => ({ won, value: await branch(part) })))
    case 'settled': {
      const results = await Promise.allSettled(node.parts.map(branch))
      return {
        settled: results.map((one) =>
          one.status === 'fulfilled' ? { value: one.value } : { error: textOf(one.reason) },
        ),
      }
    }
  }
}

function textOf(error: unknown): string {
  // Promise.any hides what it was told: any of them tells where it comes from.
  if (error instanceof AggregateError) return textOf(error.errors[0])
  return error instanceof Error ? error.message : String(error)
}
