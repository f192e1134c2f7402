import { runWorker } from '../start.ts'
import conversation from './worker.ts'

await runWorker(() => [conversation])
