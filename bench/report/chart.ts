import { parse, View } from 'vega'
import { compile, type TopLevelSpec } from 'vega-lite'

export interface Bar {
  readonly title: string
  readonly value: number
  readonly ours: boolean
}

/** A gray for readers that ignore the style below. */
const TEXT = '#6e7781'
/** Works on light and dark: an SVG in a page follows the reader's choice. */
const STYLE = `<style>text{fill:#1f2328}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>`

/** A bar chart as SVG, the longest bar first. Nothing is fetched, neither here nor by the reader. */
export async function drawBars(options: { title: string; bars: readonly Bar[] }): Promise<string> {
  const bars = options.bars
    .map((bar) => ({ ...bar, label: `${Number(bar.value.toPrecision(3))} ×` }))
    .toSorted((a, b) => b.value - a.value)
  const y = { field: 'title', type: 'nominal', sort: bars.map(({ title }) => title), title: null } as const
  const spec: TopLevelSpec = {
    width: 460,
    height: { step: 28 },
    background: 'transparent',
    title: { text: options.title, anchor: 'start', fontSize: 14, offset: 12 },
    data: { values: bars },
    layer: [
      {
        mark: { type: 'bar', cornerRadiusEnd: 2, height: 18 },
        encoding: {
          y,
          x: { field: 'value', type: 'quantitative', axis: null, scale: { domainMin: 0, nice: false } },
          color: {
            field: 'ours',
            type: 'nominal',
            legend: null,
            scale: { domain: [true, false], range: ['#1f883d', '#8c959f'] },
          },
        },
      },
      {
        mark: { type: 'text', align: 'left', dx: 6, fontSize: 12 },
        encoding: { y, x: { field: 'value', type: 'quantitative' }, text: { field: 'label' }, color: { value: TEXT } },
      },
    ],
    config: {
      font: 'system-ui, sans-serif',
      view: { stroke: null },
      axis: { labelFontSize: 12, labelColor: TEXT, labelLimit: 240, ticks: false, domain: false, grid: false },
      title: { color: TEXT },
    },
  }
  const svg = await new View(parse(compile(spec).spec), { renderer: 'none' }).toSVG()
  return `${svg.replace(/^(<svg[^>]*>)/, `$1${STYLE}`)}\n`
}
