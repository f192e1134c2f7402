import type { Dump, Life } from './recording.ts'

/** A store that is watched from outside of Tasker. */
export interface Store {
  readonly lives: Life[]
  /** All that it holds now. */
  dump(): Promise<Dump>
  stop(): Promise<void>
}
