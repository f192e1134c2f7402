import { connect, createServer, type Server, type Socket } from 'node:net'

/** A proxy between a client and a server, to see what goes over the wire and to lose it. */
export interface TcpProxy {
  readonly port: number
  /** Bytes of the largest burst that went to the server without an answer in between. */
  readonly largestCall: number
  /** Cuts the connection when the next answer comes: the server has acted, and the client does not learn of it. */
  loseNextAnswer(): void
  /** Cuts all connections. */
  cut(): void
  /** While it is set, new connections are cut at once. */
  refuse(refusing: boolean): void
  close(): Promise<void>
}

export async function startTcpProxy(target: { port: number }): Promise<TcpProxy> {
  const sockets = new Set<Socket>()
  let losing = false
  let refusing = false
  let largestCall = 0
  const server: Server = createServer((client) => {
    if (refusing) {
      client.destroy()
      return
    }
    const upstream = connect(target.port, '127.0.0.1')
    let burst = 0
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.on('close', () => {
        sockets.delete(socket)
        client.destroy()
        upstream.destroy()
      })
    }
    client.on('data', (data) => {
      burst += data.length
      largestCall = Math.max(largestCall, burst)
      upstream.write(data)
    })
    upstream.on('data', (data) => {
      burst = 0
      if (losing) {
        losing = false
        client.destroy()
      } else client.write(data)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('The proxy has no port.')
  return {
    port: address.port,
    get largestCall() {
      return largestCall
    },
    loseNextAnswer() {
      losing = true
    },
    cut() {
      for (const socket of sockets) socket.destroy()
    },
    refuse(value) {
      refusing = value
    },
    async close() {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
