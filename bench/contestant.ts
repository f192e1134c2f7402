/** One run of one contestant, in a process of its own: `bun bench/contestant.ts <name> <body> <n>` prints a line of JSON. */
import { bodies } from './bodies.ts'
import { entryOf } from './contestants/contestants.ts'
import { settingOf } from './measure/setting.ts'
import { createStage } from './measure/stage.ts'

const [name = '', bodyName = '', count = '1000'] = process.argv.slice(2)
const body = bodies[bodyName]
const { load } = entryOf(name)
if (!body || !load) throw new Error(`bun bench/contestant.ts <name> <${Object.keys(bodies).join('|')}> <n>`)
const n = Number(count)
const { setting, load: tasksPerSecond } = settingOf(process.env)
const { open } = await load()
const contestant = await open(setting, body.purpose ?? 'throughput')
const stage = createStage()
const values = await body.run({ contestant, n, stage, setting, tasksPerSecond })
const measured = stage.measured()
const rssBytes = await peakBytes()
const stored = await contestant.stored()
console.log(JSON.stringify({ name, body: bodyName, n, ...measured, rssBytes, stored, values }))
// What a contestant leaves open must not keep the process.
await Promise.race([contestant.close(), Bun.sleep(2_000)]).catch(() => undefined)
process.exit(0)

/** The peak of this process alone: on Linux what the system tells of a process includes what it was started from. */
async function peakBytes(): Promise<number> {
  const status = await Bun.file('/proc/self/status')
    .text()
    .catch(() => '')
  const kilobytes = /^VmHWM:\s*(\d+) kB/m.exec(status)?.[1] ?? process.resourceUsage().maxRSS
  return Number(kilobytes) * 1024
}
