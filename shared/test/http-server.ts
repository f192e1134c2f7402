/** A server for the tests of what all runtimes have in common, to be run by each of them. */
import { bodyLimit } from 'hono/body-limit'
import { createBase } from '#shared/http/base.ts'
import { createDoors } from '#shared/http/doors.ts'
import { readJson } from '#shared/http/json.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { aborted, runMain } from '#shared/runtime/process.ts'
import { type Connection, serve } from '#shared/runtime/serve.ts'

await runMain('server', async (signal) => {
  const app = createBase({
    ...{ service: 'test', about: {}, log: silentLog, unknownPath: 'Nothing here.', ready: async () => {} },
    doors: createDoors({
      ...{ open: false, hosts: null, trustedProxies: 0, corsOrigins: [], maxWaiters: 1 },
      rateLimit: { perSecond: 1, burst: 1_000 },
    }),
  })
  app.post('/echo', async (c) => c.json(await readJson(c, { deadlineMs: 200 })))
  app.post('/patient', async (c) => {
    console.log('Asked.')
    return c.json(await readJson(c, { deadlineMs: 60_000 }))
  })
  app.post('/limited', bodyLimit({ maxSize: 10 }), async (c) => c.text(await c.req.text()))
  app.get('/query', (c) => c.json(c.req.query()))
  // Answers when the process is told to stop.
  app.get('/until-stop', async (c) => {
    console.log('Asked.')
    await aborted(signal)
    return c.text('answered')
  })
  app.get('/until-gone', async (c) => {
    console.log('Asked.')
    await aborted(c.req.raw.signal)
    console.log('Gone.')
    return c.text('')
  })
  // Quiet for longer than Bun leaves a connection by itself, and than headers may take.
  app.get('/quiet', async (c) => {
    await new Promise((resolve) => setTimeout(resolve, 12_500))
    return c.text('answered')
  })
  app.get('/address', (c) => c.text((c.env as unknown as Connection).address() ?? 'none'))
  app.get('/bug', () => {
    throw new Error('private')
  })
  const server = await serve({
    // One that fails outside of the app, which answers for all that fails within.
    fetch: (request, connection) => {
      if (request.url.endsWith('/outside')) throw new Error('private')
      return app.fetch(request, connection)
    },
    host: '127.0.0.1',
    port: Number(process.env['PORT'] ?? 0),
    stopMs: Number(process.env['STOP_MS'] ?? 60_000),
  })
  console.log(`Listening on ${server.url}.`)
  await aborted(signal)
  await server.stop()
  console.log('Stopped.')
})
