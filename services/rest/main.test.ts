import { describe, expect, test } from 'bun:test'
import { silentLog } from '#shared/runtime/log.ts'
import { startProcess } from '#shared/test/process.ts'
import { NoReply, openConnection } from './connection.ts'

const REDIS_URL = process.env['REDIS_TEST_URL'] ?? ''

describe('the process', () => {
  test('does not start without a token', async () => {
    const child = startProcess('services/rest/main.ts', { REDIS_URL, REST_PORT: '0' })
    expect(await child.ended).toBe(1)
    expect(child.output()).toContain('rest: REST_TOKEN must be set')
  })

  test('serves, and ends on SIGTERM although somebody is listening', async () => {
    const child = startProcess('services/rest/main.ts', { REDIS_URL, REST_PORT: '0', REST_TOKEN: 'a-secret' })
    await child.prints('Listening.')
    const url = /"url":"([^"]+)"/.exec(child.output())?.[1]
    const headers = { Authorization: 'Bearer a-secret' }
    expect(await (await fetch(`${url}/echo/hello`, { headers })).json()).toEqual({ result: 'hello' })
    const stream = await fetch(`${url}/subscribe/rest-main`, { headers })
    child.kill('SIGTERM')
    expect(await stream.text()).toStartWith('data: subscribe,rest-main,1')
    expect(await child.ended).toBe(0)
    expect(child.output()).not.toContain('a-secret')
  })
})

test('a database that is not there is not replaced by another', async () => {
  const connection = await openConnection({ url: `${REDIS_URL}/99`, token: 'a-secret', log: silentLog })
  await expect(connection.send([{ name: 'PING', args: [] }])).rejects.toBeInstanceOf(NoReply)
  connection.close()
})
