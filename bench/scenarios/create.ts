import { freePort } from '../../shared/test/process.ts'
import { postFlatOut } from '../load/http.ts'
import { startService } from '../measure/server.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { range } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

const SERVERS = [
  { name: 'the creator on Redis', file: 'services/creator/main.ts' },
  { name: 'Hono and zod, storing nothing', file: 'bench/servers/nothing.ts' },
  { name: 'the creator on a store that answers at once', file: 'bench/servers/at-once.ts' },
]

export const create: Scenario = {
  name: 'create',
  async run(bench) {
    const seconds = bench.options.n !== null ? 1 : bench.size(5, 1)
    const servers = []
    for (const { name, file } of SERVERS) {
      const port = await freePort()
      const url = `http://127.0.0.1:${port}`
      const env = { REDIS_URL: bench.redisUrl, CREATOR_PORT: String(port) }
      servers.push({
        ...{ name, url },
        service: await startService(file, env, `${url}/readyz`),
        rates: [] as number[],
        p99: [] as number[],
      })
    }
    let tool = ''
    try {
      for (const { url } of servers) await postFlatOut(`${url}/sum`, 1)
      for (let round = 0; round < bench.options.rounds; round++) {
        for (const { url, rates, p99 } of servers) {
          await bench.flush()
          const load = await postFlatOut(`${url}/sum`, seconds)
          rates.push(load.requestsPerSecond)
          p99.push(load.p99Ms)
          tool = load.tool
        }
      }
    } finally {
      for (const { service } of servers) await service.stop()
    }
    const [creator, nothing, atOnce] = servers
    const measured = pairwise(creator?.rates ?? [], nothing?.rates ?? [])
    return {
      title: `create: POST /sum (${tool}, 64 connections)`,
      columns: ['', 'requests/s', 'p99, ms'],
      rows: servers.map(({ name, rates, p99 }) => [name, range(spread(rates)), range(spread(p99))]),
      goals: [{ text: 'creator ÷ storing nothing', measured, atLeast: 0.85 }],
      data: { creator: creator?.rates, nothing: nothing?.rates, atOnce: atOnce?.rates, tool },
    }
  },
}
