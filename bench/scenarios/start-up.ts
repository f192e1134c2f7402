import { join } from 'node:path'
import { freePort } from '../../shared/test/process.ts'
import { runFolder } from '../measure/run.ts'
import { startService } from '../measure/server.ts'
import { spread } from '../measure/stats.ts'
import { range } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

export const startUp: Scenario = {
  name: 'start-up',
  async run(bench) {
    const stores = [
      {
        title: 'SQLite, a new file',
        times: [] as number[],
        env: (dir: string) => ({ TASKER_DB: join(dir, 'new.db') }),
      },
      { title: 'Redis', times: [] as number[], env: () => ({ REDIS_URL: bench.redisUrl }) },
    ]
    for (let round = 0; round < bench.options.rounds; round++) {
      for (const { times, env } of stores) {
        await bench.flush()
        const folder = runFolder()
        const [creator, manager] = [await freePort(), await freePort()]
        const ports = { CREATOR_PORT: String(creator), MANAGER_PORT: String(manager) }
        const settings = { ...ports, ...env(folder.path), TASKER_SECRET_FILE: join(folder.path, 'key') }
        const service = await startService('services/dev.ts', settings, `http://127.0.0.1:${creator}/readyz`)
        times.push(service.readyMs)
        await service.stop()
        folder.remove()
      }
    }
    return {
      title: 'start-up: ms from the start of services/dev.ts to the first answer of GET /readyz',
      columns: ['', 'ms'],
      rows: stores.map(({ title, times }) => [title, range(spread(times))]),
      goals: [],
      data: Object.fromEntries(stores.map(({ title, times }) => [title, times])),
    }
  },
}
