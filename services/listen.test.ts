import { expect, test } from 'bun:test'
import { listen, portProblem } from './listen.ts'

const fetch = () => new Response()
const inUse = Object.assign(new Error('in use'), { code: 'EADDRINUSE' })
const at = { host: '127.0.0.1', port: 5000, setting: 'CREATOR_PORT', platform: 'linux' }

test('a port in use is named, with the setting that changes it', async () => {
  const busy = await listen({ fetch, host: '127.0.0.1', port: 0, setting: 'CREATOR_PORT' })
  const port = Number(new URL(busy.url).port)
  await expect(listen({ fetch, host: '127.0.0.1', port, setting: 'MANAGER_PORT' })).rejects.toThrow(
    `port ${port} is in use: stop what listens there, or set MANAGER_PORT to another port.`,
  )
  await busy.stop()
})

test('on a Mac the ports of AirPlay are told to be that, and no other', () => {
  expect(portProblem(inUse, { ...at, platform: 'darwin' })).toMatch(
    /^port 5000 is in use.*CREATOR_PORT.*AirPlay Receiver/,
  )
  expect(portProblem(inUse, { ...at, port: 5001, platform: 'darwin' })).not.toContain('AirPlay')
  expect(portProblem(inUse, at)).not.toContain('AirPlay')
})

test('an address of another machine, and a port that this user may not have, are named too', async () => {
  // Kept for documentation: no machine has it.
  await expect(listen({ fetch, host: '192.0.2.1', port: 0, setting: 'CREATOR_PORT' })).rejects.toThrow('HOST=192.0.2.1')
  const denied = Object.assign(new Error('denied'), { code: 'EACCES' })
  expect(portProblem(denied, { ...at, port: 80 })).toMatch(/port 80 .*CREATOR_PORT/)
  expect(portProblem(new Error('something else'), at)).toBeNull()
})
