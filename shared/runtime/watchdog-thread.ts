/** The thread that looks whether the event loop of its process still turns: see watchdog.ts. */
import { writeSync } from 'node:fs'
import { workerData } from 'node:worker_threads'
import { LOOKS, type Watched } from './watchdog.ts'

const { turns, everyMs } = workerData as Watched
const counter = new Int32Array(turns)
let last = -1
let still = 0

setInterval(() => {
  const now = Atomics.load(counter, 0)
  still = now === last ? still + 1 : 0
  last = now
  if (still < LOOKS) return
  writeSync(
    2,
    'A handler has blocked this process for as long as a lease lasts: its tasks are taken by other workers, and it ends.\n',
  )
  process.kill(process.pid, 'SIGKILL')
}, everyMs)
