import type { Listen } from '../../serve.ts'

/** `Bun.serve`. The limits of headers are its own. */
export const listen: Listen = async ({ fetch, host, port, limits }) => {
  const server = Bun.serve({
    fetch: (request, bun) =>
      fetch(absolute(request, bun.url), { address: () => bun.requestIP(request)?.address ?? null }),
    hostname: host,
    port,
    idleTimeout: limits.idleMs / 1000,
    // Bun's own answer shows the stack. (`development: false` would keep it back too, and let processes share a port.)
    error: () => new Response(null, { status: 500 }),
  })
  return {
    port: server.port ?? port,
    drain: () => server.stop(),
    cut: () => void server.stop(true),
  }
}

/**
 * Without a `Host`, as a health check over HTTP/1.0 may come, and with one that is no host, Bun gives a bare path for
 * the URL. It is no reference: two slashes at its beginning name no host.
 */
function absolute(request: Request, base: URL): Request {
  return request.url.startsWith('/') ? new Request(base.origin + request.url, request) : request
}
