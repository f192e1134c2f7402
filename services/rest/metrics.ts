/** Counts what the endpoint does. */
export interface Metrics {
  request(status: number): void
  /** A bill for one request; what is put on it is counted here as well. */
  openBill(): Bill
  /** In Prometheus' text format. `subscribers` is how many streams are open now. */
  text(subscribers: number): string
}

/** The commands that one request costs, as Upstash counts: each that was sent, and each that a script ran. */
export interface Bill {
  /** A command that was sent. */
  command(name: string): void
  /** Commands that a script ran. */
  inScript(count: number): void
  total(): number
}

export function createMetrics(): Metrics {
  const requests = new Map<number, number>()
  const sent = new Map<string, number>()
  let inScripts = 0

  return {
    request: (status) => add(requests, status, 1),
    openBill() {
      let total = 0
      return {
        command(name) {
          total += 1
          add(sent, name.toLowerCase(), 1)
        },
        inScript(count) {
          total += count
          inScripts += count
        },
        total: () => total,
      }
    },
    text(subscribers) {
      const lines = [
        '# HELP rest_requests_total Requests answered, by status.',
        '# TYPE rest_requests_total counter',
        ...Array.from(requests, ([status, count]) => `rest_requests_total{status="${status}"} ${count}`),
        '# HELP rest_commands_total Commands as Upstash bills them: those that were sent, and those that scripts ran.',
        '# TYPE rest_commands_total counter',
        ...Array.from(sent, ([name, count]) => `rest_commands_total{command="${name}"} ${count}`),
        `rest_commands_total{command="inside_scripts"} ${inScripts}`,
        '# HELP rest_subscribers Streams of subscriptions that are open.',
        '# TYPE rest_subscribers gauge',
        `rest_subscribers ${subscribers}`,
      ]
      return `${lines.join('\n')}\n`
    },
  }
}

function add<Key>(counts: Map<Key, number>, key: Key, count: number): void {
  counts.set(key, (counts.get(key) ?? 0) + count)
}
