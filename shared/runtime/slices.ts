import { nextTurn } from './clock.ts'

/** How long a loop may hold the event loop before heartbeats, timers, sockets and signals have their turn, in ms. */
const SLICE_MS = 10

/** Tells loops that may be long when to let others have a turn. One for all loops of a worker or store: they share the event loop. */
export interface Slices {
  /** Whether the event loop has been held for a slice. */
  isOver(): boolean
  /** Resolves after a turn of the event loop. */
  turn(): Promise<void>
}

export function createSlices(now: () => number = () => performance.now()): Slices {
  let began: number | null = null
  return {
    isOver() {
      if (began !== null) return now() - began > SLICE_MS
      began = now()
      // A chain of microtasks keeps this from happening, and is what is measured.
      void nextTurn().then(() => {
        began = null
      })
      return false
    },
    turn: nextTurn,
  }
}
