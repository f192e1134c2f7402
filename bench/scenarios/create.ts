import { postFlatOut } from '../load/http.ts'
import { freePort, startService } from '../measure/server.ts'
import { pairwise, spread } from '../measure/stats.ts'
import { range } from '../report/format.ts'
import type { Scenario } from './scenario.ts'

export const create: Scenario = {
  name: 'create',
  async run(bench) {
    const seconds = bench.options.n !== null ? 1 : bench.size(5, 1)
    const servers = []
    for (const file of ['services/creator/main.ts', 'bench/servers/nothing.ts']) {
      const port = await freePort()
      const url = `http://127.0.0.1:${port}`
      const env = { REDIS_URL: bench.redisUrl, CREATOR_PORT: String(port) }
      servers.push({
        url,
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
    const [creator, nothing] = servers
    const measured = pairwise(creator?.rates ?? [], nothing?.rates ?? [])
    return {
      title: `create: POST /sum (${tool}, 64 connections)`,
      columns: ['', 'requests/s', 'p99, ms'],
      rows: servers.map(({ rates, p99 }, i) => [
        i === 0 ? 'the creator on Redis' : 'Hono and zod, storing nothing',
        range(spread(rates)),
        range(spread(p99)),
      ]),
      goals: [{ text: 'creator ÷ storing nothing', measured, atLeast: 0.85 }],
      data: { creator: creator?.rates, nothing: nothing?.rates, tool },
    }
  },
}
