import type { Server } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { createAdaptorServer, type HttpBindings } from '@hono/node-server'
import type { Limits, Listen } from '../../serve.ts'

/**
 * `node:http`, on Node and on Deno. Its own time limits are switched off: Deno does not keep to them, and Node looks for connections that
 * are over theirs only now and then.
 */
export const listen: Listen = async ({ fetch, host, port, limits }) => {
  const server = createAdaptorServer({
    fetch: (request, env) => {
      const { incoming } = env as HttpBindings
      if (incoming.rawHeaders.length > 2 * limits.headerFields) return tooManyFields()
      return fetch(request, { address: () => incoming.socket.remoteAddress ?? null })
    },
    // Of a request without a `Host`.
    hostname: host.includes(':') ? `[${host}]` : host,
    serverOptions: { maxHeaderSize: limits.headerBytes, headersTimeout: 0, requestTimeout: 0, keepAliveTimeout: 0 },
  }) as Server
  // Node would leave out what is beyond its limit.
  server.maxHeadersCount = 0
  const connections = watchConnections(server, limits)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, () => {
      server.off('error', reject)
      resolve()
    })
  })
  return {
    port: (server.address() as AddressInfo).port,
    drain: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        connections.drain()
      }),
    cut: connections.cut,
  }
}

function tooManyFields(): Response {
  return new Response(null, { status: 431, headers: { Connection: 'close' } })
}

/** Ends connections that send no request for too long, and, once it drains, those that have no request under way. */
function watchConnections(server: Server, { headersMs, idleMs }: Limits) {
  const connections = new Map<Socket, { underWay: number; timer?: ReturnType<typeof setTimeout> }>()
  let draining = false

  server.on('connection', (socket: Socket) => {
    connections.set(socket, { underWay: 0, timer: setTimeout(() => socket.destroy(), headersMs) })
    socket.once('close', () => {
      clearTimeout(connections.get(socket)?.timer)
      connections.delete(socket)
    })
    if (draining) socket.destroy()
  })

  server.on('request', ({ socket }, response) => {
    const connection = connections.get(socket)
    if (!connection) return
    connection.underWay++
    clearTimeout(connection.timer)
    response.once('close', () => {
      connection.underWay--
      if (connection.underWay > 0 || !connections.has(socket)) return
      if (draining) socket.destroySoon()
      else connection.timer = setTimeout(() => socket.destroy(), idleMs)
    })
  })

  return {
    drain() {
      draining = true
      for (const [socket, { underWay }] of connections) if (underWay === 0) socket.destroy()
    },
    cut() {
      for (const socket of connections.keys()) socket.destroy()
    },
  }
}
