import { createWorkerEdge } from '../edge.ts'
import sum from './worker.ts'

export default createWorkerEdge({ implementations: () => [sum], concurrency: 100 })
