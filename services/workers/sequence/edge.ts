import { createWorkerEdge } from '../edge.ts'
import sequence from './worker.ts'

export default createWorkerEdge({ implementations: () => [sequence] })
