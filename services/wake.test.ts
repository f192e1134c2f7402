import { afterEach, describe, expect, test } from 'bun:test'
import { type Config, loadConfig } from '#shared/runtime/config.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createWaker } from './wake.ts'

/** A worker that is called at `/drain`, and answers as it is told to. */
function worker(answer: (call: number) => Response | Promise<Response>) {
  let calls = 0
  const server = Bun.serve({ port: 0, hostname: '127.0.0.1', idleTimeout: 0, fetch: () => answer(++calls) })
  servers.push(server)
  const lines: string[] = []
  const config: Config = loadConfig({ WORKER_URLS: server.url.href, DRAIN_TOKEN: 'drain' })
  const work: Promise<unknown>[] = []
  const invocation = {
    config,
    log: createLogger('debug', (line) => lines.push(line)),
    waitUntil: (promise: Promise<unknown>) => void work.push(promise),
  }
  return { invocation, work, lines, calls: () => calls }
}

const servers: ReturnType<typeof Bun.serve>[] = []
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop(true)
})

const never = () => new Promise<Response>(() => undefined)

describe('waking a worker', () => {
  test('ends when the worker does not answer in time, and the invocation with it', async () => {
    const { invocation, work, lines, calls } = worker(never)
    createWaker({ timeoutMs: 50 }).wake(['sum'], invocation)
    await Promise.all(work)
    expect(calls()).toBe(1)
    expect(lines.join()).toContain('A worker could not be woken')
  })

  test('is one call at a time, however many tasks come while it hangs', async () => {
    const called = Promise.withResolvers<void>()
    const { invocation, work, calls } = worker(() => {
      called.resolve()
      return never()
    })
    const waker = createWaker({ timeoutMs: 500 })
    waker.wake(['sum'], invocation)
    await called.promise
    for (let i = 0; i < 100; i++) waker.wake(['sum'], invocation)
    await Promise.all(work)
    expect([work.length, calls()]).toEqual([1, 1])
  })

  test('is done once more for tasks that came after it was sent', async () => {
    const called = Promise.withResolvers<void>()
    const answer = Promise.withResolvers<void>()
    const { invocation, work, calls } = worker(async () => {
      called.resolve()
      await answer.promise
      return new Response(null, { status: 202 })
    })
    const waker = createWaker()
    waker.wake(['sum'], invocation)
    // Those that come before it is sent are there when it arrives.
    waker.wake(['sum'], invocation)
    await called.promise
    waker.wake(['sum'], invocation)
    answer.resolve()
    await Promise.all(work)
    expect([work.length, calls()]).toEqual([1, 2])
    waker.wake(['sum'], invocation)
    await Promise.all(work)
    expect(calls()).toBe(3)
  })
})
