import { createWorkerEdge } from '../edge.ts'
import conversation from './worker.ts'

export default createWorkerEdge({ implementations: () => [conversation] })
