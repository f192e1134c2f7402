import { implement } from '#shared/worker/implement.ts'
import { sum } from '../sum/contract.ts'
import { sequence } from './contract.ts'

/**
 * Adds the numbers 0, 1, …, n in rounds of pairs: n + 1 leaves take exactly n sums, and the depth grows with log n. An odd one out goes on to the next round.
 */
export default implement(sequence, async ({ n }, ctx) => {
  let numbers = Array.from({ length: n + 1 }, (_, i) => i)
  while (numbers.length > 1) {
    const rest = numbers.length % 2 === 1 ? numbers.slice(-1) : []
    const pairs = Array.from({ length: Math.floor(numbers.length / 2) }, (_, i) => ({
      num1: numbers[2 * i] ?? 0,
      num2: numbers[2 * i + 1] ?? 0,
    }))
    numbers = [...(await ctx.map(sum, pairs)), ...rest]
    ctx.progress(n + 1 - numbers.length, n)
  }
  return numbers[0] ?? 0
})
