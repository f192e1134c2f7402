/** `bun bench/load/batches.ts <url> <tasks a second> <seconds>`: posts batches at that rate, whatever the server does, and prints what it answered. */
import { percentile } from '../measure/stats.ts'

const [url = '', rate = '1000', seconds = '5'] = process.argv.slice(2)
const BATCH = 50
const body = JSON.stringify({ payloads: Array.from({ length: BATCH }, (_, i) => ({ num1: i, num2: 7 })) })

const answers: Record<string, number> = {}
const times: number[] = []

async function post(): Promise<void> {
  const left = performance.now()
  const answer = await fetch(url, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body }).then(
    async (response) => {
      await response.arrayBuffer()
      return String(response.status)
    },
    () => 'none',
  )
  times.push(performance.now() - left)
  answers[answer] = (answers[answer] ?? 0) + 1
}

const under = new Set<Promise<void>>()
const count = Math.round((Number(rate) * Number(seconds)) / BATCH)
const from = performance.now()
for (let i = 0; i < count; i++) {
  const wait = from + (i * BATCH * 1_000) / Number(rate) - performance.now()
  if (wait > 0) await Bun.sleep(wait)
  const one = post().then(() => void under.delete(one))
  under.add(one)
}
await Promise.all(under)
const tasks = (answers['201'] ?? 0) * BATCH
console.log(JSON.stringify({ answers, tasks, p50: percentile(times, 50), p99: percentile(times, 99) }))
process.exit(0)
