import { describe, expect, test } from 'bun:test'
import { ConfigError } from '#shared/runtime/config.ts'
import { loadRestConfig } from './config.ts'

describe('settings', () => {
  test('need a Redis and a token, and no more', () => {
    expect(loadRestConfig({ REDIS_URL: 'redis://localhost', REST_TOKEN: 't', HOST: ' ' })).toEqual({
      host: '127.0.0.1',
      port: 8079,
      redisUrl: 'redis://localhost',
      token: 't',
      logLevel: 'info',
    })
  })

  test('that are wrong are named at once, never with their values', () => {
    const problems = (env: Record<string, string>) => {
      try {
        loadRestConfig(env)
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError)
        return (error as Error).message
      }
      throw new Error('It was accepted.')
    }
    expect(problems({})).toBe('REDIS_URL must be set\nREST_TOKEN must be set: nobody is let in without a token')
    const wrong = { REDIS_URL: 'http://secret1', REST_TOKEN: 'secret 2', REST_PORT: '65536', LOG_LEVEL: 'loud' }
    expect(problems(wrong).split('\n')).toHaveLength(4)
    expect(problems(wrong)).not.toContain('secret')
    expect(problems({ REDIS_URL: 'redis://a,redis://b', REST_TOKEN: 't' })).toContain(
      'REDIS_URL must be the URL of one Redis',
    )
  })
})
