/** What a `POST` costs before anything is stored: the same framework, the same check of the body, an answer of the same size. */
import { Hono } from 'hono'
import { uuidv7 } from 'uuidv7'
import * as z from 'zod'

const creation = z.object({ payload: z.object({ num1: z.number(), num2: z.number() }) })

const app = new Hono()
app.post('/sum', async (c) => {
  const parsed = creation.safeParse(await c.req.json())
  if (!parsed.success) return c.json({ error: parsed.error.issues }, 422)
  const id = uuidv7()
  c.header('Location', `http://localhost:5001/task/${id}`)
  return c.json({ task_id: id, kind: 'sum', status: 'queued' }, 201)
})
app.get('/readyz', (c) => c.json({ status: 'ready' }))

Bun.serve({ fetch: app.fetch, hostname: '127.0.0.1', port: Number(process.env['CREATOR_PORT']) })
