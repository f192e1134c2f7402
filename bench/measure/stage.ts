export interface Measured {
  /** Wall time of what was measured, and the CPU time that this process spent on it. */
  readonly ms: number
  readonly cpuMs: number
}

/** Where a run tells the runner how far it is, and takes its times. */
export interface Stage {
  /** Lets the runner read the store's counters; resolves when it has. At once when nobody listens. */
  mark(label: string): Promise<void>
  /** Measures one piece of work, between the marks `before` and `after`. */
  measure(work: () => Promise<unknown>): Promise<Measured>
  measured(): Measured
}

export function createStage(): Stage {
  let last: Measured = { ms: 0, cpuMs: 0 }

  async function mark(label: string): Promise<void> {
    if (!process.send) return
    const go = new Promise<void>((resolve) => process.once('message', () => resolve()))
    process.send({ mark: label })
    await go
  }

  return {
    mark,
    async measure(work) {
      await mark('before')
      const cpu = process.cpuUsage()
      const from = performance.now()
      await work()
      const ms = performance.now() - from
      const { user, system } = process.cpuUsage(cpu)
      last = { ms, cpuMs: (user + system) / 1_000 }
      await mark('after')
      return last
    },
    measured: () => last,
  }
}
