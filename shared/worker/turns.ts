import { onNextTurn } from '#shared/runtime/clock.ts'

/** A turn of the event loop in which handlers are started: what they do then follows from their payloads alone. */
export interface Turn {
  isOver: boolean
}

/** Turns of the event loop, shared by the runs of a worker. */
export interface Turns {
  /** The present one. */
  present(): Turn
  /**
   * Calls `begin` in the next turn, which is over when all is done that it caused by itself: neither timers nor sockets come between. Handlers are started in it.
   * Resolves with what it gives.
   */
  start<T>(begin: () => T): Promise<Awaited<T>>
  /**
   * Calls `begin` in the next turn, and `end` when all is done that it caused by itself. Both are queued together: between them there are the microtasks of the
   * first, and neither timers nor sockets.
   */
  between(begin: () => void, end: () => void): void
}

export function createTurns(): Turns {
  let turn: Turn = { isOver: true }
  let waiting: { begin: () => void; end: () => void }[] | null = null
  return {
    start(begin) {
      const present: Turn = { isOver: false }
      return new Promise((resolve, reject) => {
        onNextTurn(() => {
          turn = present
          try {
            resolve(begin() as Awaited<ReturnType<typeof begin>>)
          } catch (error) {
            reject(error)
          }
        })
        onNextTurn(() => {
          present.isOver = true
        })
      })
    },
    present() {
      if (!turn.isOver) return turn
      const present: Turn = { isOver: false }
      onNextTurn(() => {
        present.isOver = true
      })
      turn = present
      return present
    },
    between(begin, end) {
      if (waiting) {
        waiting.push({ begin, end })
        return
      }
      const together = [{ begin, end }]
      waiting = together
      onNextTurn(() => {
        waiting = null
        for (const one of together) one.begin()
      })
      onNextTurn(() => {
        for (const one of together) one.end()
      })
    },
  }
}
