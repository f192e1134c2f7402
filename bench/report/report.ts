import type { Goal, Report } from '../scenarios/scenario.ts'
import { number, range, ratio, table } from './format.ts'

/** A scenario's table, with its goals beneath. */
export function textOf({ title, columns, rows, goals, notes = [] }: Report): string {
  const parts = [`\n${title}\n`, table(columns, rows)]
  if (goals.length > 0) parts.push('', ...goals.map((goal) => `  ${verdict(goal).padEnd(8)} ${line(goal)}`))
  if (notes.length > 0) parts.push('', ...notes.map((note) => `  ${note}`))
  return parts.join('\n')
}

export function isMet({ measured, atLeast, atMost }: Goal): boolean | null {
  if (!measured) return null
  return measured.median >= (atLeast ?? -Infinity) && measured.median <= (atMost ?? Infinity)
}

function verdict(goal: Goal): string {
  const met = isMet(goal)
  return met === null ? 'unknown' : met ? 'met' : 'NOT MET'
}

function line({ text, measured, atLeast, atMost, unit = '×' }: Goal): string {
  const bound = atLeast === undefined ? `at most ${number(atMost)}` : `at least ${number(atLeast)}`
  const value = unit === '×' ? ratio(measured) : `${range(measured)} ${unit}`
  return `${text}: ${value}, goal ${bound} ${unit}`
}
