import { runWorker } from '../start.ts'
import { createChat } from './worker.ts'

await runWorker((config) => [createChat(config.openai)])
