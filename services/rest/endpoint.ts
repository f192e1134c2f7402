// For tests: the endpoint as it is started for real, over the Redis of the tests.
import { randomUUID } from 'node:crypto'
import { Redis, type RedisConfigNodejs } from '@upstash/redis'
import { Redis as TcpRedis } from 'ioredis'
import { REST_TOKEN, startRestEndpoint } from '#shared/test/rest-endpoint.ts'
import { BILLED } from './app.ts'

export const TOKEN = REST_TOKEN

export interface Answer {
  status: number
  headers: Headers
  text: string
  json: unknown
  /** What it cost, as the endpoint says. */
  billed: number
}

export async function startEndpoint(redisUrl = process.env['REDIS_TEST_URL'] ?? '') {
  const server = await startRestEndpoint(redisUrl)
  const tcp = new TcpRedis(redisUrl)
  tcp.on('error', () => undefined)
  const prefix = `rest:${randomUUID()}:`

  const request = async (path: string, init: RequestInit = {}): Promise<Answer> => {
    const headers = { Authorization: `Bearer ${TOKEN}`, ...(init.headers as Record<string, string> | undefined) }
    const response = await fetch(`${server.url}${path}`, { ...init, headers })
    const text = await response.text()
    const isJson = response.headers.get('Content-Type') === 'application/json'
    const json: unknown = isJson && text !== '' ? JSON.parse(text) : null
    return {
      status: response.status,
      headers: response.headers,
      text,
      json,
      billed: Number(response.headers.get(BILLED)),
    }
  }

  return {
    url: server.url,
    /** The Redis behind it. */
    tcp,
    key: (name: string) => prefix + name,
    request,
    post: (path: string, body: unknown, headers: Record<string, string> = {}) =>
      request(path, { method: 'POST', body: typeof body === 'string' ? body : JSON.stringify(body), headers }),
    /** Upstash's own client, without what would hide a failure. */
    sdk: (options: Partial<RedisConfigNodejs> = {}) =>
      new Redis({ url: server.url, token: TOKEN, retry: false, enableTelemetry: false, ...options }),
    async stop() {
      await server.stop()
      tcp.disconnect()
    },
  }
}

/** Asks again until the answer is the one that is hoped for, and fails after 10 s. Each question goes over a socket, so others get their turn. */
export async function eventually(question: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000
  while (!(await question())) if (Date.now() > deadline) throw new Error('It did not come to pass in 10 s.')
}
