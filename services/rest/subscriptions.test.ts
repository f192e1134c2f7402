import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { Redis as TcpRedis } from 'ioredis'
import { silentLog } from '#shared/runtime/log.ts'
import { startRedis } from '#shared/test/redis-server.ts'
import { openConnection } from './connection.ts'
import { eventually, startEndpoint, TOKEN } from './endpoint.ts'
import { createStreams } from './stream.ts'
import { openSubscriptions } from './subscriptions.ts'

let endpoint: Awaited<ReturnType<typeof startEndpoint>>
beforeAll(async () => {
  endpoint = await startEndpoint()
})
afterAll(() => endpoint.stop())

const subscribersOf = async (channel: string) => Number((await endpoint.tcp.pubsub('NUMSUB', channel))[1])

/** A stream as it comes over HTTP: `next` waits for the next event. */
async function listen(path: string, init: RequestInit = {}) {
  const controller = new AbortController()
  const headers = { Authorization: `Bearer ${TOKEN}` }
  const response = await fetch(endpoint.url + path, { method: 'POST', headers, signal: controller.signal, ...init })
  expect(response.status).toBe(200)
  return { response, ...reader(response.body as ReadableStream<Uint8Array>), leave: () => controller.abort() }
}

function reader(stream: ReadableStream<Uint8Array>) {
  const chunks = stream.getReader()
  const decoder = new TextDecoder()
  let text = ''
  return {
    /** The next event; null at the end. */
    async next(): Promise<string | null> {
      for (;;) {
        const at = text.indexOf('\n\n')
        if (at >= 0) {
          const event = text.slice(0, at)
          text = text.slice(at + 2)
          return event
        }
        const { done, value } = await chunks.read()
        if (done) return null
        text += decoder.decode(value, { stream: true })
      }
    },
    cancel: () => chunks.cancel(),
  }
}

describe('a stream', () => {
  test('begins when Redis has confirmed the subscription, and then has every message', async () => {
    const channel = endpoint.key('channel')
    const stream = await listen(`/subscribe/${encodeURIComponent(channel)}`)
    expect(stream.response.headers.get('Content-Type')).toBe('text/event-stream')
    expect(stream.response.headers.get('Rest-Commands-Billed')).toBe('1')
    expect(await endpoint.post('/', ['PUBLISH', channel, 'one, two'])).toMatchObject({ json: { result: 1 }, billed: 1 })
    await endpoint.tcp.publish(channel, 'ü\nmessage,other,forged')
    expect(await stream.next()).toBe(`data: subscribe,${channel},1`)
    expect(await stream.next()).toBe(`data: message,${channel},one, two`)
    expect(await stream.next()).toBe(`data: message,${channel},ü\ndata:message,other,forged`)
    stream.leave()
  })

  test('of a pattern names it, and the channel', async () => {
    const pattern = endpoint.key('p*')
    const stream = await listen(`/psubscribe/${encodeURIComponent(pattern)}`, { method: 'GET' })
    await endpoint.tcp.publish(endpoint.key('p1'), 'm')
    expect(await stream.next()).toBe(`data: psubscribe,${pattern},1`)
    expect(await stream.next()).toBe(`data: pmessage,${pattern},${endpoint.key('p1')},m`)
    stream.leave()
  })

  test('may be for several channels, but not for none', async () => {
    const [a, b] = [endpoint.key('a'), endpoint.key('b')]
    const stream = await listen(`/subscribe/${a}/${b}`)
    await endpoint.tcp.publish(b, 'm')
    expect(await stream.next()).toBe(`data: subscribe,${a},1`)
    expect(await stream.next()).toBe(`data: subscribe,${b},2`)
    expect(await stream.next()).toBe(`data: message,${b},m`)
    stream.leave()
    expect((await endpoint.post('/subscribe', '')).status).toBe(400)
    expect((await endpoint.request('/subscribe/x', { method: 'PUT', body: '' })).status).toBe(405)
  })

  test('leaves nothing behind when its reader goes away, and the others stay', async () => {
    const channel = endpoint.key('shared')
    const [stays, ...leave] = await Promise.all(Array.from({ length: 20 }, () => listen(`/subscribe/${channel}`)))
    // Many readers are one subscriber.
    expect(await subscribersOf(channel)).toBe(1)
    expect(await endpoint.request('/metrics')).toMatchObject({ text: expect.stringContaining('rest_subscribers 20\n') })
    for (const stream of leave) stream.leave()
    await eventually(async () => (await endpoint.request('/metrics')).text.includes('rest_subscribers 1\n'))
    expect(await stays?.next()).toBe(`data: subscribe,${channel},1`)
    await endpoint.tcp.publish(channel, 'still')
    expect(await stays?.next()).toBe(`data: message,${channel},still`)
    stays?.leave()
    await eventually(async () => (await endpoint.request('/metrics')).text.includes('rest_subscribers 0\n'))
    await eventually(async () => (await subscribersOf(channel)) === 0)
  })

  test('leaves nothing behind when its reader goes away before it began', async () => {
    const channel = endpoint.key('early')
    const controller = new AbortController()
    const init = { method: 'POST', headers: { Authorization: `Bearer ${TOKEN}` }, signal: controller.signal }
    const asked = Array.from({ length: 20 }, () =>
      fetch(`${endpoint.url}/subscribe/${channel}`, init).catch(() => null),
    )
    await endpoint.tcp.ping()
    controller.abort()
    await Promise.all(asked)
    await eventually(async () => (await endpoint.request('/metrics')).text.includes('rest_subscribers 0\n'))
    await eventually(async () => (await subscribersOf(channel)) === 0)
    const again = await listen(`/subscribe/${channel}`)
    expect(await again.next()).toBe(`data: subscribe,${channel},1`)
    again.leave()
  })

  test('is understood by the subscriber of the client of Upstash', async () => {
    const channel = endpoint.key('sdk')
    const subscriber = endpoint.sdk().subscribe<{ n: number }>(channel)
    const received = new Promise((resolve) => subscriber.on('message', resolve))
    await new Promise((resolve) => subscriber.on('subscribe', resolve))
    await endpoint.sdk().publish(channel, { n: 1 })
    expect(await received).toEqual({ channel, message: { n: 1 } })
    await subscriber.unsubscribe()
    await eventually(async () => (await subscribersOf(channel)) === 0)
  })
})

test('a quiet stream has a comment now and then', async () => {
  const subscriptions = await openSubscriptions(process.env['REDIS_TEST_URL'] ?? '')
  const streams = createStreams(subscriptions, { heartbeatMs: 1 })
  const stream = reader(await streams.open('subscribe', [endpoint.key('quiet')], new AbortController().signal))
  await stream.next()
  expect(await stream.next()).toStartWith(':')
  expect(streams.size).toBe(1)
  await stream.cancel()
  expect(streams.size).toBe(0)
  subscriptions.close()
})

test('a stream ends when its reader is too far behind, and the others do not', async () => {
  const subscriptions = await openSubscriptions(process.env['REDIS_TEST_URL'] ?? '')
  const streams = createStreams(subscriptions, { maxUnreadBytes: 1_000 })
  const channel = endpoint.key('behind')
  const { signal } = new AbortController()
  const [slow, fast] = [
    await streams.open('subscribe', [channel], signal),
    reader(await streams.open('subscribe', [channel], signal)),
  ]
  await fast.next()
  for (let count = 0; count < 5; count++) {
    await endpoint.tcp.publish(channel, `${count}${'x'.repeat(300)}`)
    expect(await fast.next()).toStartWith(`data: message,${channel},${count}x`)
  }
  expect(streams.size).toBe(1)
  const late = reader(slow)
  const got: unknown[] = []
  for (let event = await late.next(); event !== null; event = await late.next()) got.push(event)
  expect(got.length).toBeLessThan(6)
  await fast.cancel()
  subscriptions.close()
})

test('streams end when the connection to Redis is lost, and a new one begins when it is back', async () => {
  const redis = await startRedis()
  const subscriptions = await openSubscriptions(redis.url)
  const streams = createStreams(subscriptions)
  const { signal } = new AbortController()
  const stream = reader(await streams.open('subscribe', ['c'], signal))
  expect(await stream.next()).toBe('data: subscribe,c,1')
  await redis.kill()
  expect(await stream.next()).toBeNull()
  expect(streams.size).toBe(0)
  await expect(streams.open('subscribe', ['c'], signal)).rejects.toThrow('Redis does not answer')
  const back = await startRedis({ port: redis.port })
  try {
    let again: ReadableStream<Uint8Array> | null = null
    const asker = await openConnection({ url: back.url, token: 't', log: silentLog })
    await eventually(async () => {
      await asker.send([{ name: 'PING', args: [] }])
      again = await streams.open('subscribe', ['c'], signal).catch(() => null)
      return again !== null
    })
    asker.close()
    const other = new TcpRedis(back.url)
    await other.publish('c', 'm')
    other.disconnect()
    const restarted = reader(again as unknown as ReadableStream<Uint8Array>)
    expect(await restarted.next()).toBe('data: subscribe,c,1')
    expect(await restarted.next()).toBe('data: message,c,m')
  } finally {
    subscriptions.close()
    await back.stop()
    await redis.stop()
  }
})
