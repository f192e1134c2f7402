import type { Redis } from 'ioredis'

/** Redis's own counters at one moment. */
export interface Snapshot {
  /** CPU time that the server has used, in ms. */
  readonly cpuMs: number
  /** Memory of the data: without the buffers of connected clients. */
  readonly memoryBytes: number
  /** Calls by command, those inside scripts included. */
  readonly commands: Readonly<Record<string, number>>
}

export async function snapshot(redis: Redis): Promise<Snapshot> {
  const text = await redis.call('INFO', 'everything')
  const info = new Map(
    String(text)
      .split('\r\n')
      .filter((line) => line.includes(':'))
      .map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1)]),
  )
  const number = (name: string) => Number(info.get(name) ?? 0)
  const commands = [...info].flatMap(([name, value]) => {
    const calls = /^calls=(\d+)/.exec(value)?.[1]
    // The runner's own question is nobody's cost.
    return name.startsWith('cmdstat_') && name !== 'cmdstat_info' && calls ? [[name.slice(8), Number(calls)]] : []
  })
  return {
    cpuMs: (number('used_cpu_user') + number('used_cpu_sys')) * 1_000,
    memoryBytes: number('used_memory') - number('mem_clients_normal'),
    commands: Object.fromEntries(commands),
  }
}

/** Commands between two moments. */
export function commandsBetween(before: Snapshot, after: Snapshot): Record<string, number> {
  const names = Object.keys(after.commands)
  return Object.fromEntries(
    names
      .map((name) => [name, (after.commands[name] ?? 0) - (before.commands[name] ?? 0)] as const)
      .filter(([, count]) => count > 0),
  )
}

export function total(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0)
}
