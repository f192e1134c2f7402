import { runWorker } from '../start.ts'
import sequence from './worker.ts'

await runWorker(() => [sequence])
