import type { Broker, Stored, Subscription } from '#shared/broker/broker.ts'
import { inParts } from '#shared/broker/parts.ts'
import { Problem } from '#shared/http/problem.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import type { Log } from '#shared/runtime/log.ts'

export interface WaiterOptions {
  broker: Broker
  log: Log
  /** How often the store is asked about all tasks that are waited for: events may be lost. */
  pollMs: number
  /** Each holds a connection, and is asked about with every poll. */
  maxWaiters: number
  clock: Clock
}

export interface Waiter {
  /**
   * What is stored of the task when it has ended, when `timeoutMs` are over or when the signal aborts; null when it is unknown.
   *
   * @throws Problem with code `too_many_waiters` when `maxWaiters` others wait.
   */
  wait(id: string, options: { timeoutMs: number; signal: AbortSignal }): Promise<Stored | null>
}

/** Called when a task may have ended, with its final record if that is known. */
type Wake = (record: string | null) => void

/** Waits for tasks to end: all waiters share one subscription and one poll, which exist only while someone waits. */
export function createWaiter({ broker, log, pollMs, maxWaiters, clock }: WaiterOptions): Waiter {
  const waiting = new Map<string, Set<Wake>>()
  let waiters = 0
  let watching: Promise<Subscription | null> | null = null
  let polling: AbortController | null = null

  const wake = (id: string, record: string | null) => {
    for (const run of waiting.get(id) ?? []) run(record)
  }

  async function watch(): Promise<Subscription | null> {
    try {
      const subscription = await broker.watch((event) => {
        if (event.type === 'end') for (const { id, record } of event.tasks) wake(id, record)
      })
      log.debug('Watching for tasks that end.')
      return subscription
    } catch (error) {
      log.warn('Cannot watch for tasks that end; polling goes on.', { error: String(error) })
      return null
    }
  }

  async function poll(signal: AbortSignal): Promise<void> {
    for (;;) {
      await clock.sleep(pollMs, signal)
      if (signal.aborted) return
      try {
        await wakeEnded()
      } catch (error) {
        log.warn('Cannot look for tasks that have ended; the next poll tries again.', { error: String(error) })
      }
    }
  }

  async function wakeEnded(): Promise<void> {
    // Of those that live nothing is read. One that was deleted is found out when its time is up, if its end was not
    // heard of.
    for await (const ended of inParts(broker, [...waiting.keys()], { endedOnly: true })) {
      for (const task of ended) if (task?.record != null) wake(task.id, task.record)
    }
  }

  function add(id: string, run: Wake): Promise<unknown> {
    const runs = waiting.get(id) ?? new Set()
    waiting.set(id, runs.add(run))
    if (polling === null) {
      polling = new AbortController()
      void poll(polling.signal)
    }
    watching ??= watch()
    return watching
  }

  function drop(id: string, run: Wake): void {
    const runs = waiting.get(id)
    runs?.delete(run)
    if (runs?.size === 0) waiting.delete(id)
    if (waiting.size > 0) return
    polling?.abort()
    polling = null
    void watching?.then((subscription) => subscription?.close())
    watching = null
  }

  return {
    async wait(id, { timeoutMs, signal }) {
      if (waiters >= maxWaiters) {
        const detail = `${maxWaiters} requests wait for tasks already: ask again later, or without wait.`
        throw new Problem('too_many_waiters', detail, { headers: { 'Retry-After': '1' } })
      }
      waiters++
      const over = new AbortController()
      const ends = AbortSignal.any([signal, over.signal])
      let woken = Promise.withResolvers<string | null>()
      const run: Wake = (record) => woken.resolve(record)
      ends.addEventListener('abort', () => run(null))
      void clock.sleep(timeoutMs, ends).then(() => over.abort())
      try {
        // A store that hangs must not hold the caller over its time.
        await Promise.race([add(id, run), woken.promise])
        for (;;) {
          // Asked only after the subscription stands: an end in between cannot be missed.
          const [stored] = await broker.get([id])
          if (!stored?.live || ends.aborted) return stored ?? null
          const record = await woken.promise
          if (record !== null) return { id, record, live: null }
          woken = Promise.withResolvers()
        }
      } finally {
        waiters--
        over.abort()
        drop(id, run)
      }
    },
  }
}
