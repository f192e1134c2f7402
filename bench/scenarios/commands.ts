import { commandsBetween, total } from '../measure/redis.ts'
import { alternate } from '../measure/rounds.ts'
import type { Run } from '../measure/run.ts'
import { number } from '../report/format.ts'
import type { Goal, Scenario } from './scenario.ts'

export const commands: Scenario = {
  name: 'commands',
  async run(bench) {
    const n = Math.min(100, bench.size(100, 50))
    const entries = bench.entries(['tasker-redis', 'tasker-rest', 'bullmq'])
    const rounds = await alternate(bench, entries, (entry) => bench.run(entry, [['commands', n]]), 1)
    const between = (run: Run | null | undefined, from: string, to: string) => {
      const [before, after] = [run?.marks[from], run?.marks[to]]
      return before && after ? commandsBetween(before, after) : {}
    }
    /** What the REST endpoint counted: commands as they are billed (its own, to count them, left out), and requests but for the runner's question. */
    const billed = (run: Run | null | undefined, from: string, to: string) => {
      const [before, after] = [run?.marks[from]?.bill, run?.marks[to]?.bill]
      return before && after
        ? { commands: after.commands - before.commands, requests: after.requests - before.requests - 1 }
        : null
    }
    const phases = [
      { label: 'run', from: 'lone', to: 'read', tasks: n },
      { label: 'awaited and read', from: 'read', to: 'batch', tasks: n },
      { label: 'in 50s', from: 'batch', to: 'end', tasks: n * 50 },
    ]
    const perTask = (name: string, index: number) => {
      const phase = phases[index]
      const run = rounds.of[name]?.[0]
      if (!run || !phase) return null
      const { from, to, tasks } = phase
      const overRest = name === 'tasker-rest' ? billed(run, from, to) : null
      return (overRest?.commands ?? total(between(run, from, to))) / tasks
    }
    const goal = (text: string, value: number | null, atMost: number): Goal => ({
      ...{ text, atMost, unit: 'commands' },
      measured: value === null ? null : { median: value, min: value, max: value },
    })
    return {
      title:
        'commands: store commands for a task, those inside scripts included (the last columns: HTTP requests over REST)',
      columns: ['', ...phases.map(({ label }) => label), ...phases.map(({ label }) => `requests: ${label}`)],
      rows: rounds.entries.map(({ name, title }) => [
        title,
        ...phases.map((_, i) => number(perTask(name, i))),
        ...phases.map(({ from, to, tasks }) => {
          const overRest = name === 'tasker-rest' ? billed(rounds.of[name]?.[0], from, to) : null
          return number(overRest && overRest.requests / tasks)
        }),
      ]),
      goals: [
        goal('Tasker on Redis, a lone task, awaited and read', perTask('tasker-redis', 1), 20),
        goal('Tasker on Redis, a task among 50', perTask('tasker-redis', 2), 0.5),
      ],
      data: Object.fromEntries(
        entries.map(({ name }) => [
          name,
          phases.map(({ label, from, to }) => ({ label, commands: between(rounds.of[name]?.[0], from, to) })),
        ]),
      ),
    }
  },
}
