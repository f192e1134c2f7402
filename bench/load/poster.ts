/** `bun bench/load/poster.ts <url> <requests a second> <seconds>`: prints p50 and p99 in ms. */
import { percentile } from '../measure/stats.ts'
import { BODY } from './http.ts'

const [url = '', rate = '200', seconds = '5'] = process.argv.slice(2)
const everyMs = 1_000 / Number(rate)
const count = Math.round(Number(rate) * Number(seconds))

async function post(): Promise<void> {
  const response = await fetch(url, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: BODY })
  await response.arrayBuffer()
  if (response.status !== 201) throw new Error(`${url} answered ${response.status}.`)
}

// Connections and the server's code are warm before the first request counts.
for (let i = 0; i < 100; i++) await post()

const times: number[] = []
const under: Promise<void>[] = []
const from = performance.now()
for (let i = 0; i < count; i++) {
  const due = from + i * everyMs
  const wait = due - performance.now()
  if (wait > 0) await Bun.sleep(wait)
  // A request that the timer brought late is timed from when it left: the timer's lateness is not the server's.
  const left = wait > 0 ? performance.now() : due
  under.push(post().then(() => void times.push(performance.now() - left)))
}
await Promise.all(under)
console.log(JSON.stringify({ p50: percentile(times, 50), p99: percentile(times, 99), count: times.length }))
process.exit(0)
