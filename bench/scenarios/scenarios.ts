import { backlog } from './backlog.ts'
import { commands } from './commands.ts'
import { cpu } from './cpu.ts'
import { create } from './create.ts'
import { endToEnd } from './end-to-end.ts'
import { latency } from './latency.ts'
import { memory } from './memory.ts'
import { overload } from './overload.ts'
import { postUnderLoad } from './post-under-load.ts'
import { restLatency } from './rest-latency.ts'
import type { Scenario } from './scenario.ts'
import { sequence } from './sequence.ts'
import { startUp } from './start-up.ts'
import { worker } from './worker.ts'

/** In the order in which they run. */
export const scenarios: readonly Scenario[] = [
  endToEnd,
  worker,
  create,
  latency,
  sequence,
  memory,
  cpu,
  backlog,
  commands,
  startUp,
  postUnderLoad,
  restLatency,
  overload,
]
