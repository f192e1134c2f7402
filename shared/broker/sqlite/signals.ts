import type { Subscription, TaskEvent } from '../broker.ts'
import type { Database } from './database.ts'

const POLL_MS = 50

type Wake = (kind: string, at: number | null) => void

/** What a transaction did that others want to hear of, told when it is committed. */
export interface News {
  queued(kind: string): void
  due(kind: string, at: number): void
  ended(id: string, record: string | null): void
}

export interface Signals {
  subscribe(kinds: readonly string[], wake: Wake): Subscription
  watch(on: (event: TaskEvent) => void): Subscription
  emit(event: TaskEvent): void
  /** Collects the news of one transaction; `tell` passes them on. */
  collect(): News & { tell(): void }
  close(): void
}

/**
 * Wake-ups and events: exact within the process. Of other processes it only learns that they wrote something, by looking while there
 * is a subscriber, and then wakes every kind.
 */
export function createSignals(db: Database): Signals {
  const subscribers = new Set<{ kinds: ReadonlySet<string>; wake: Wake }>()
  const watchers = new Set<{ on: (event: TaskEvent) => void }>()
  const version = db.prepare<{ data_version: number }>('PRAGMA data_version')
  let seen: number | undefined
  let timer: ReturnType<typeof setInterval> | undefined

  function poll(): void {
    const before = seen
    try {
      seen = version.get()?.data_version
    } catch {
      return // The store is busy or broken: the next look, or the next call, tells.
    }
    if (seen === before) return
    for (const { kinds, wake } of subscribers) for (const kind of kinds) wake(kind, null)
  }

  function stop(): void {
    clearInterval(timer)
    timer = undefined
  }

  function wakeAll(kind: string, at: number | null): void {
    for (const { kinds, wake } of subscribers) {
      // Not called from within: what a listener throws must not fail a call whose work is committed.
      if (kinds.has(kind)) queueMicrotask(() => wake(kind, at))
    }
  }

  function emit(event: TaskEvent): void {
    for (const { on } of watchers) queueMicrotask(() => on(event))
  }

  return {
    subscribe(kinds, wake) {
      const subscriber = { kinds: new Set(kinds), wake }
      subscribers.add(subscriber)
      if (timer === undefined) {
        seen = version.get()?.data_version
        timer = setInterval(poll, POLL_MS)
        timer.unref()
      }
      return {
        async close() {
          subscribers.delete(subscriber)
          if (subscribers.size === 0) stop()
        },
      }
    },

    watch(on) {
      const watcher = { on }
      watchers.add(watcher)
      return {
        async close() {
          watchers.delete(watcher)
        },
      }
    },

    emit,

    collect() {
      const queued = new Set<string>()
      const due = new Map<string, number>()
      const ended: { id: string; record: string | null }[] = []
      return {
        queued: (kind) => void queued.add(kind),
        due: (kind, at) => void due.set(kind, Math.min(at, due.get(kind) ?? at)),
        ended: (id, record) => void ended.push({ id, record }),
        tell() {
          for (const kind of queued) wakeAll(kind, null)
          for (const [kind, at] of due) wakeAll(kind, at)
          if (ended.length > 0) emit({ type: 'end', tasks: ended })
        },
      }
    },

    close() {
      stop()
      subscribers.clear()
      watchers.clear()
    },
  }
}
