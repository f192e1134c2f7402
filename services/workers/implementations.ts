import type { Config } from '#shared/runtime/config.ts'
import type { Implementation } from '#shared/worker/implement.ts'
import { createChat } from './chat/worker.ts'
import conversation from './conversation/worker.ts'
import sequence from './sequence/worker.ts'
import sum from './sum/worker.ts'

/** Every kind's handler, a line each, for a process that runs several. */
export function createImplementations(config: Config): Implementation[] {
  return [sum, createChat(config.openai), sequence, conversation]
}
