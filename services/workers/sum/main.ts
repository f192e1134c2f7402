import { runWorker } from '../start.ts'
import sum from './worker.ts'

await runWorker(() => [sum])
