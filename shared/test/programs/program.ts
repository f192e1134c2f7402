/**
 * Random handlers as data: calls, maps, steps, sleeps, races and branches, through which values flow. A leaf gives a value that nobody can foresee, and
 * notes what it was given; so it can be told afterwards whether each was given what stood before it in the program.
 */
import fc from 'fast-check'

export type Program =
  | { type: 'step' | 'call'; label: string; ms: number; fails: number; isTransient: boolean }
  | { type: 'map'; label: string; size: number; fails: number }
  | { type: 'sleep'; label: string; ms: number }
  /** Code of the handler's own that fails in its first runs. */
  | { type: 'flaky'; label: string; fails: number }
  | { type: 'try'; body: Program; rescue: Program }
  /** A task of its own. */
  | { type: 'sub'; label: string; body: Program }
  | { type: 'seq' | 'all' | 'race' | 'any' | 'settled'; parts: Program[] }

/** What a program gives: of a leaf its label and the number of the execution that gave it, of the others what their parts gave. */
export type Output =
  | { at: string; n: number }
  | { list: Output[] }
  | { slept: string }
  | { won: number; value: Output }
  | { settled: ({ value: Output } | { error: string })[] }
  | { tried: Output }
  | { error: string; rescued: Output }

type Unlabelled = Program

const ms = fc.integer({ min: 0, max: 12 })
const fails = fc.oneof({ weight: 5, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constantFrom(1, 2) })

export const programs: fc.Arbitrary<Program> = fc
  .letrec<{ any: Unlabelled; leaf: Unlabelled; list: Unlabelled }>((tie) => ({
    leaf: fc.oneof(
      fc.record({
        type: fc.constantFrom('step' as const, 'call' as const),
        label: fc.constant(''),
        ...{ ms, fails, isTransient: fc.boolean() },
      }),
      fc.record({
        type: fc.constant('map' as const),
        label: fc.constant(''),
        size: fc.integer({ min: 1, max: 4 }),
        fails,
      }),
      fc.record({ type: fc.constant('sleep' as const), label: fc.constant(''), ms: fc.integer({ min: 0, max: 20 }) }),
    ),
    list: fc.record({
      type: fc.constantFrom(
        'seq' as const,
        'seq' as const,
        'all' as const,
        'all' as const,
        'race' as const,
        'any' as const,
        'settled' as const,
      ),
      parts: fc.array(tie('any'), { minLength: 2, maxLength: 5 }),
    }),
    any: fc.oneof(
      { maxDepth: 4, depthSize: 0.15, withCrossShrink: true },
      { weight: 4, arbitrary: tie('leaf') },
      { weight: 8, arbitrary: tie('list') },
      {
        weight: 1,
        arbitrary: fc.record({
          type: fc.constant('flaky' as const),
          label: fc.constant(''),
          fails: fc.constantFrom(1, 2),
        }),
      },
      { weight: 2, arbitrary: fc.record({ type: fc.constant('try' as const), body: tie('any'), rescue: tie('any') }) },
      {
        weight: 1,
        arbitrary: fc.record({ type: fc.constant('sub' as const), label: fc.constant(''), body: tie('any') }),
      },
    ),
  }))
  .list.map((program) => labelled(program, { next: 0 }, true))

/**
 * Gives each place in a program a name of its own. Code that fails at random stays only where nothing but the run hears of it, as it is no part of the
 * history.
 */
function labelled(program: Program, count: { next: number }, mayBreak: boolean): Program {
  switch (program.type) {
    case 'try':
      return {
        ...program,
        body: labelled(program.body, count, false),
        rescue: labelled(program.rescue, count, false),
      }
    case 'sub':
      return { ...program, label: `sub${count.next++}`, body: labelled(program.body, count, true) }
    case 'seq':
    case 'all':
      return { ...program, parts: program.parts.map((part) => labelled(part, count, mayBreak)) }
    case 'race':
    case 'any':
    case 'settled':
      return { ...program, parts: program.parts.map((part) => labelled(part, count, false)) }
    case 'flaky':
      if (!mayBreak) return { type: 'sleep', label: `sleep${count.next++}`, ms: program.fails }
      return { ...program, label: `flaky${count.next++}` }
    default:
      return { ...program, label: `${program.type}${count.next++}` }
  }
}
