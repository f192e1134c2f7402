import { createWorkerEdge } from '../edge.ts'
import { createChat } from './worker.ts'

export default createWorkerEdge({
  implementations: ({ openai }, fetch) => [createChat({ ...openai, fetch })],
  makesRequests: true,
})
