import type { Spread } from '../measure/stats.ts'

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })

/** Three digits that count, and no more. */
export function number(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return '-'
  if (Math.abs(value) >= 100) return whole.format(value)
  return String(Number(value.toPrecision(3)))
}

export function range(spread: Spread | null): string {
  return spread ? `${number(spread.median)} (${number(spread.min)}–${number(spread.max)})` : '-'
}

export function ratio(spread: Spread | null): string {
  return spread ? `${number(spread.median)} × (${number(spread.min)}–${number(spread.max)})` : '-'
}

/** Columns as wide as their widest cell; the first one to the left, numbers to the right. */
export function table(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map((name, i) => Math.max(name.length, ...rows.map((row) => (row[i] ?? '').length)))
  const line = (cells: readonly string[]) =>
    widths.map((width, i) => (i === 0 ? (cells[i] ?? '').padEnd(width) : (cells[i] ?? '').padStart(width))).join('  ')
  return [line(columns), widths.map((width) => '-'.repeat(width)).join('  '), ...rows.map(line)]
    .map((text) => `  ${text.trimEnd()}`)
    .join('\n')
}
