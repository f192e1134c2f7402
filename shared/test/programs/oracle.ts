import { type Execution, refOf } from './handlers.ts'
import type { Output, Program } from './program.ts'

/** Whether each leaf of an output was given what stood before it in the program. Returns what is wrong, or null. */
export function contradiction(
  node: Program,
  of: string,
  output: Output,
  executions: readonly Execution[],
): string | null {
  const wrong = (why: string) => `${JSON.stringify(output)} of ${JSON.stringify(node)}: ${why}`
  const leaf = (label: string, given: Output): string | null => {
    if (given === null || !('at' in given)) return wrong(`${label} gave no value`)
    const execution = executions[given.n]
    if (given.at !== label || execution?.label !== label) return wrong(`${label} has the result of ${execution?.label}`)
    return execution.of === of ? null : wrong(`${label} was given ${execution.of}, and ${of} stood before it`)
  }
  const first = (checks: (string | null)[]) => checks.find((check) => check !== null) ?? null
  switch (node.type) {
    case 'step':
    case 'call':
      return leaf(node.label, output)
    case 'map':
      if (!('list' in output) || output.list.length !== node.size) return wrong('another number of results')
      return first(output.list.map((one, i) => leaf(`${node.label}.${i}`, one)))
    case 'sleep':
    case 'flaky':
      return 'slept' in output && output.slept === node.label ? null : wrong('another sleep')
    case 'sub':
      return contradiction(node.body, of, output, executions)
    case 'try': {
      if ('tried' in output) return contradiction(node.body, of, output.tried, executions)
      if (!('rescued' in output)) return wrong('neither tried nor rescued')
      const { error, rescued } = output
      const given = refOf({ error })
      return foreignError(node.body, error, executions) ?? contradiction(node.rescue, given, rescued, executions)
    }
    case 'seq': {
      if (!('list' in output) || output.list.length !== node.parts.length) return wrong('another number of results')
      const { list } = output
      return first(
        node.parts.map((part, i) => {
          const [one, before] = [list[i], list[i - 1]]
          return one ? contradiction(part, before ? refOf(before) : of, one, executions) : wrong('a hole')
        }),
      )
    }
    case 'all': {
      if (!('list' in output) || output.list.length !== node.parts.length) return wrong('another number of results')
      const { list } = output
      return first(node.parts.map((part, i) => contradiction(part, of, list[i] as Output, executions)))
    }
    case 'race':
    case 'any': {
      const part = 'won' in output ? node.parts[output.won] : undefined
      if (!part || !('won' in output)) return wrong('nobody won')
      return contradiction(part, of, output.value, executions)
    }
    case 'settled': {
      if (!('settled' in output) || output.settled.length !== node.parts.length)
        return wrong('another number of results')
      const { settled } = output
      return first(
        node.parts.map((part, i) => {
          const one = settled[i]
          if (!one) return wrong('a hole')
          return 'value' in one
            ? contradiction(part, of, one.value, executions)
            : foreignError(part, one.error, executions)
        }),
      )
    }
  }
}

/** An error must come from a place within the program that it is said to come from. */
function foreignError(node: Program, error: string, executions: readonly Execution[]): string | null {
  const [label = '', n] = error.split('#')
  if (executions[Number(n)]?.label !== label) return `"${error}" is the error of nothing that was executed`
  return labelsOf(node).has(label) ? null : `"${error}" does not come from ${JSON.stringify(node)}`
}

function labelsOf(node: Program): Set<string> {
  switch (node.type) {
    case 'map':
      return new Set(Array.from({ length: node.size }, (_, i) => `${node.label}.${i}`))
    case 'try':
      return new Set([...labelsOf(node.body), ...labelsOf(node.rescue)])
    case 'sub':
      return labelsOf(node.body)
    case 'seq':
    case 'all':
    case 'race':
    case 'any':
    case 'settled':
      return new Set(node.parts.flatMap((part) => [...labelsOf(part)]))
    default:
      return new Set([node.label])
  }
}
