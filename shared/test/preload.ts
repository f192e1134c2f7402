import { startRedis } from './redis-server.ts'

if (!process.env['REDIS_TEST_URL']) {
  try {
    process.env['REDIS_TEST_URL'] = (await startRedis()).url
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
    process.exit(1)
  }
}
