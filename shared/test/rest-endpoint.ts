import { startRest } from '#services/rest/main.ts'
import { silentLog } from '#shared/runtime/log.ts'
import { redisTestUrl } from './stores.ts'

export const REST_TOKEN = 'rest-test-token'

export interface RestEndpoint {
  readonly url: string
  readonly token: string
  /** Commands so far, as Upstash bills them, and HTTP requests. */
  bill(): Promise<{ commands: number; requests: number }>
  stop(): Promise<void>
}

/** The REST endpoint before the Redis of this test run. */
export async function startRestEndpoint(redisUrl = redisTestUrl()): Promise<RestEndpoint> {
  const server = await startRest(
    { redisUrl, host: '127.0.0.1', port: 0, token: REST_TOKEN, logLevel: 'silent' },
    silentLog,
  )
  return {
    url: server.url,
    token: REST_TOKEN,
    async bill() {
      const response = await fetch(`${server.url}/metrics`, { headers: { Authorization: `Bearer ${REST_TOKEN}` } })
      const text = await response.text()
      const sum = (name: string) =>
        text
          .split('\n')
          .filter((line) => line.startsWith(`${name}{`))
          .reduce((total, line) => total + Number(line.slice(line.lastIndexOf(' '))), 0)
      return { commands: sum('rest_commands_total'), requests: sum('rest_requests_total') }
    },
    stop: () => server.stop(),
  }
}
