import type { Contestant, Purpose, Setting } from './contestants/contestant.ts'
import type { Stage } from './measure/stage.ts'
import { percentile } from './measure/stats.ts'

export interface BodyContext {
  readonly contestant: Contestant
  readonly n: number
  readonly stage: Stage
  readonly setting: Setting
  /** Tasks a second that run beside what is measured, where that is asked for. */
  readonly tasksPerSecond: number | undefined
}

/** What a run's process does. What it returns are values of its own, beside the times that the stage took. */
export interface Body {
  readonly purpose?: Purpose
  run(context: BodyContext): Promise<Record<string, number>>
}

const NOTHING = {}

export const bodies: Readonly<Record<string, Body>> = {
  /** Adds and works at the same time, after a start with a few tasks that everyone is given. */
  'end-to-end': {
    async run({ contestant, n, stage }) {
      await both(contestant, Math.min(1_000, Math.ceil(n / 10)))
      await stage.measure(() => both(contestant, n))
      return NOTHING
    },
  },

  fill: {
    async run({ contestant, n }) {
      await (contestant.fill?.(n) ?? contestant.add(n))
      return NOTHING
    },
  },

  /** Works off what `fill` left, from a standing start. */
  worker: {
    async run({ contestant, n, stage }) {
      await stage.measure(() => contestant.work(n))
      return NOTHING
    },
  },

  /** Single tasks: one after the other on an idle queue, then with other tasks passing through all the time. */
  latency: {
    purpose: 'results',
    async run({ contestant, n, stage, tasksPerSecond }) {
      await times(contestant, 50)
      const idle = await times(contestant, n)
      const flat = Math.max(1_000, n * 4)
      await both(contestant, flat)
      const { ms } = await stage.measure(() => both(contestant, flat))
      const rate = (flat / ms) * 1_000
      const half = await underLoad(contestant, n, rate / 2)
      // More than it can take would make its queue, and the wait, grow for ever.
      const bearable = tasksPerSecond !== undefined && tasksPerSecond < 0.8 * rate
      const given = bearable ? await underLoad(contestant, n, tasksPerSecond) : []
      return { rate, ...percentiles('idle', idle), ...percentiles('half', half), ...percentiles('given', given) }
    },
  },

  /** One sequence of n sums. */
  sequence: {
    async run({ contestant, n, stage }) {
      if (!('sequence' in contestant) || typeof contestant.sequence !== 'function') throw new Error('No sequences.')
      const run = contestant.sequence
      await run(Math.min(1_000, n))
      await stage.measure(async () => {
        const sum: unknown = await run(n)
        if (sum !== (n * (n + 1)) / 2) throw new Error(`The sequence of ${n} gave ${String(sum)}.`)
      })
      return NOTHING
    },
  },

  /** Adds, and does not work. */
  add: {
    async run({ contestant, n }) {
      await contestant.add(n)
      return NOTHING
    },
  },

  /** Tasks alone, tasks alone whose result is awaited and read, and tasks in batches of 50. */
  commands: {
    purpose: 'results',
    async run({ contestant, n, stage }) {
      await times(contestant, 20)
      await stage.mark('lone')
      for (let i = 0; i < n; i++) await both(contestant, 1)
      await stage.mark('read')
      await times(contestant, n)
      await stage.mark('batch')
      for (let i = 0; i < n; i++) await both(contestant, 50)
      await stage.mark('end')
      return NOTHING
    },
  },

  /** Works beside a backlog that `fill` left: as many come in as go out. */
  backlog: {
    async run({ contestant, n, stage }) {
      await both(contestant, Math.ceil(n / 10))
      await stage.measure(() => both(contestant, n))
      return NOTHING
    },
  },

  'rest-latency': {
    purpose: 'results',
    async run({ contestant, n, setting }) {
      const ping = async () => {
        const { url, token } = setting.rest
        const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' }
        const response = await fetch(url, { method: 'POST', headers, body: '["PING"]' })
        await response.json()
      }
      // Both meet an idle worker and an idle endpoint: nothing of the one before is still under way. All processes are warm by then.
      const idle = () => Bun.sleep(5)
      const warmUp = n / 2
      const tasks: number[] = []
      const pings: number[] = []
      for (let i = -warmUp; i < n; i++) {
        await idle()
        const trip = await timed(ping)
        await idle()
        const [task = 0] = await times(contestant, 1)
        if (i < 0) continue
        pings.push(trip)
        tasks.push(task)
      }
      return { ...percentiles('task', tasks), ...percentiles('trip', pings) }
    },
  },
}

async function both(contestant: Contestant, n: number): Promise<void> {
  // The worker counts from now on: it must be asked before the first task is there.
  await Promise.all([contestant.work(n), contestant.add(n)])
}

async function times(contestant: Contestant, n: number): Promise<number[]> {
  if (!contestant.one) throw new Error('Single results are not offered.')
  const all: number[] = []
  for (let i = 0; i < n; i++) all.push(await timed(() => contestant.one?.() ?? Promise.resolve()))
  return all
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work()
  return performance.now() - from
}

/** Times of n single tasks while others come in at a steady rate. */
async function underLoad(contestant: Contestant, n: number, tasksPerSecond: number): Promise<number[]> {
  const TICK_MS = 10
  let measuring = true
  async function load(): Promise<void> {
    let owed = 0
    let last = performance.now()
    while (measuring) {
      await Bun.sleep(TICK_MS)
      const now = performance.now()
      owed += ((now - last) / 1_000) * tasksPerSecond
      last = now
      const whole = Math.floor(owed)
      owed -= whole
      if (whole > 0) await contestant.add(whole)
    }
  }
  const loading = load()
  await times(contestant, Math.ceil(n / 10))
  const all = await times(contestant, n)
  measuring = false
  await loading
  return all
}

function percentiles(name: string, values: readonly number[]): Record<string, number> {
  if (values.length === 0) return NOTHING
  return { [`${name}P50`]: percentile(values, 50), [`${name}P99`]: percentile(values, 99) }
}
