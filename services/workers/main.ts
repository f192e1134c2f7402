import { createImplementations } from './implementations.ts'
import { chosen, runWorker } from './start.ts'

// Several kinds in one process: all, or those of WORKER_KINDS.
await runWorker((config) => chosen(config, createImplementations(config)))
