import { expect, test } from 'bun:test'
import { createLogger } from './log.ts'
import { warnOfUnknownSettings } from './unknown-settings.ts'

function warningsOf(env: Record<string, string | undefined>): Record<string, unknown>[] {
  const lines: string[] = []
  warnOfUnknownSettings(
    env,
    createLogger('info', (line) => lines.push(line)),
  )
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>)
}

test('a variable that is no setting is warned of with the setting that it resembles, and without its value', () => {
  const warnings = warningsOf({ TASKER_TOKNS: 'hush', TASKER_REDIS_URL: 'hush', TASKER_COLOUR: 'hush' })
  expect(warnings).toMatchObject([
    { level: 'WARN', name: 'TASKER_TOKNS', did_you_mean: 'TASKER_TOKENS' },
    { level: 'WARN', name: 'TASKER_REDIS_URL', did_you_mean: 'REDIS_URL' },
    { level: 'WARN', name: 'TASKER_COLOUR' },
  ])
  expect(warnings[2]).not.toHaveProperty('did_you_mean')
  expect(JSON.stringify(warnings)).not.toContain('hush')
})

test('settings, what is empty, what others read and what Kubernetes sets are not warned of', () => {
  const ofKubernetes = {
    TASKER_SERVICE_HOST: '10.0.0.1',
    TASKER_CREATOR_PORT: 'tcp://10.0.0.1:5000',
    TASKER_CREATOR_PORT_5000_TCP_ADDR: '10.0.0.1',
  }
  expect(warningsOf({ TASKER_TOKENS: 'a', TASKER_TOKNS: '', PATH: '/bin', ...ofKubernetes })).toEqual([])
})
