import * as z from 'zod'
import { sequence as realSequence } from '#services/workers/sequence/contract.ts'
import { sum as realSum } from '#services/workers/sum/contract.ts'
import { type Contract, defineTask } from '#shared/task/define.ts'

/** Attempts that no run of faults uses up: what fails for good, fails by its own will. */
export const MANY_ATTEMPTS = 100
const retry = { maxAttempts: MANY_ATTEMPTS, backoffMs: 50, maxBackoffMs: 400 }

/** The two real kinds, but that faults do not use up their attempts. */
export const sum = { ...realSum, retry }
export const sequence = { ...realSequence, retry }

export const tree = defineTask({
  kind: 'tree',
  description: 'Adds up `width` trees of a lower depth; at depth 0 it is a sequence.',
  input: z.object({ depth: z.int().min(0), width: z.int().min(1), n: z.int().min(0) }),
  output: z.number(),
  retry,
})

export const flaky = defineTask({
  kind: 'flaky',
  description: 'Fails in its first attempts.',
  input: z.object({ fails: z.int().min(0), value: z.number() }),
  output: z.number(),
  retry,
})

export const doomed = defineTask({
  kind: 'doomed',
  description: 'Fails for good.',
  input: z.object({ reason: z.string() }),
  output: z.null(),
  retry,
})

export const rescue = defineTask({
  kind: 'rescue',
  description: 'Calls what fails for good, and catches that.',
  input: z.object({ reason: z.string() }),
  output: z.string(),
  retry,
})

export const slow = defineTask({
  kind: 'slow',
  description: 'Takes its time.',
  input: z.object({ ms: z.int().min(0), value: z.number() }),
  output: z.number(),
  retry,
})

export const brittle = defineTask({
  kind: 'brittle',
  description: 'Takes its time, and is given up when its worker dies meanwhile.',
  input: z.object({ ms: z.int().min(0), value: z.number() }),
  output: z.number(),
  retry: { maxAttempts: 1 },
  // Longer than any leap of a clock: nothing but a lost lease may end it.
  timeoutMs: 86_400_000,
})

export const steps = defineTask({
  kind: 'steps',
  description: 'Takes steps whose results nobody can foresee, with naps between them.',
  input: z.object({ count: z.int().min(1), napMs: z.int().min(0) }),
  output: z.array(z.string()),
  retry,
})

export const branches = defineTask({
  kind: 'branches',
  description:
    'Branches with a draw, a race and a call each, which complete in any order; counts those that were given their own.',
  input: z.object({ count: z.int().min(1), napMs: z.int().min(0) }),
  output: z.number(),
  retry,
})

/** All kinds of a run. */
export const chaosContracts: Readonly<Record<string, Contract>> = Object.fromEntries(
  [sum, sequence, tree, flaky, doomed, rescue, slow, brittle, steps, branches].map((contract) => [
    contract.kind,
    contract as Contract,
  ]),
)

/** A task to create, and what is known of it beforehand. */
export type Spec =
  | { kind: 'sum'; payload: { num1: number; num2: number } }
  | { kind: 'sequence'; payload: { n: number } }
  | { kind: 'tree'; payload: { depth: number; width: number; n: number } }
  | { kind: 'flaky'; payload: { fails: number; value: number } }
  | { kind: 'doomed'; payload: { reason: string } }
  | { kind: 'rescue'; payload: { reason: string } }
  | { kind: 'slow'; payload: { ms: number; value: number } }
  | { kind: 'brittle'; payload: { ms: number; value: number } }
  | { kind: 'steps'; payload: { count: number; napMs: number } }
  | { kind: 'branches'; payload: { count: number; napMs: number } }

const total = (n: number) => (n * (n + 1)) / 2

/** How a task must end: with this result, with an error of this type, or (null) with a result that only its history knows. */
export function expected(spec: Spec): { result: unknown } | { error: string } | null {
  switch (spec.kind) {
    case 'sum':
      return { result: spec.payload.num1 + spec.payload.num2 }
    case 'sequence':
      return { result: total(spec.payload.n) }
    case 'tree':
      return { result: spec.payload.width ** spec.payload.depth * total(spec.payload.n) }
    case 'flaky':
    case 'slow':
    case 'brittle':
      return { result: spec.payload.value }
    case 'rescue':
      return { result: `caught doomed: ${spec.payload.reason}` }
    case 'doomed':
      return { error: 'doomed' }
    case 'branches':
      return { result: spec.payload.count }
    case 'steps':
      return null
  }
}

/** Tasks that a creation makes in all, its descendants included. */
export function tasksIn(spec: Spec): number {
  switch (spec.kind) {
    case 'sequence':
      return 1 + spec.payload.n
    case 'tree': {
      const { depth, width, n } = spec.payload
      let nodes = 0
      for (let level = 0; level <= depth; level++) nodes += width ** level
      return nodes + width ** depth * (1 + n)
    }
    case 'rescue':
      return 2
    case 'branches':
      return 1 + 2 * spec.payload.count
    default:
      return 1
  }
}
