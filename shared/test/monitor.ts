import { connect } from 'node:net'

/** Counts how often a field of a hash is written, whoever writes it: by a script as well. */
export interface WriteCount {
  readonly writes: ReadonlyMap<string, number>
  /** Resolves when all that Redis did before is counted. */
  caughtUp(): Promise<void>
  close(): void
}

/** Listens to MONITOR on a connection of its own. */
export async function countWrites(redisUrl: string, hash: string): Promise<WriteCount> {
  const { hostname, port } = new URL(redisUrl)
  const writes = new Map<string, number>()
  const marks = new Map<string, () => void>()
  let rest = ''
  const started = Promise.withResolvers<void>()
  const socket = connect(Number(port), hostname, () => socket.write('MONITOR\r\n'))
  socket.setEncoding('latin1')
  socket.on('error', started.reject)
  socket.on('data', (data) => {
    const lines = (rest + data).split('\r\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      started.resolve()
      // "+1700000000.1 [0 lua] "HSET" "tasks" "id" "record" …", with quotes and control characters escaped.
      const [command = '', key, ...fields] = Array.from(
        line.matchAll(/"((?:[^"\\]|\\.)*)"/g),
        (match) => match[1] ?? '',
      )
      if (command.toLowerCase() === 'echo' && key) marks.get(key)?.()
      if (command.toLowerCase() !== 'hset' || key !== hash) continue
      for (let i = 0; i < fields.length; i += 2) writes.set(fields[i] ?? '', (writes.get(fields[i] ?? '') ?? 0) + 1)
    }
  })
  await started.promise
  return {
    writes,
    async caughtUp() {
      const mark = crypto.randomUUID()
      const seen = new Promise<void>((resolve) => marks.set(mark, resolve))
      const other = connect(Number(port), hostname, () => other.write(`ECHO ${mark}\r\n`))
      await seen
      other.destroy()
    },
    close: () => socket.destroy(),
  }
}
