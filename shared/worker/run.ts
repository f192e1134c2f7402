import { nextTurn } from '#shared/runtime/clock.ts'
import { type Contract, parsePayload, type ResultOf } from '#shared/task/define.ts'
import { HistoryMismatch, type RunAborted } from '#shared/task/errors.ts'
import { childId } from '#shared/task/task.ts'
import type { CallOptions, Context, Implementation } from './implement.ts'

/** How far a run came: its handler ended, or it waits for entries of its history that are not there yet. */
export type Progress = { type: 'returned'; value: unknown } | { type: 'threw'; error: unknown } | { type: 'stuck' }

/** Children called together: `ctx.call` is a group of one. Child i has number `first + i`. */
export interface CallGroup {
  readonly type: 'call'
  readonly first: number
  readonly contract: Contract
  readonly payloads: readonly unknown[]
  readonly options: CallOptions
  /** By child; a hole where it has not ended. */
  readonly results: ({ value: unknown } | { error: Error } | undefined)[]
  /** Children, by index, that the store does not know yet. */
  missing: readonly number[]
  settle(): void
}

/** A durable sleep; `until` in ms since the epoch, null before it is known. */
export interface Sleep {
  readonly type: 'sleep'
  readonly first: number
  readonly ms: number
  until: number | null
  stored: boolean
  settle(): void
}

/** What a run needs of the outside while its handler is running. */
export interface RunPorts {
  /** The recorded result of step number n as JSON, or null when it has none. */
  loadStep(n: number, name: string): Promise<string | null>
  /** Records a step; rejects when the task is no longer ours. */
  storeStep(n: number, name: string, json: string): Promise<void>
  emit(chunk: string): void
}

/**
 * One run of a handler, from its start or from history, until it ends or is parked. A parked run that is kept in memory goes on in place when its
 * task is claimed again: nothing but speed depends on that.
 */
export interface Run {
  readonly taskId: string
  /** Waits until the handler has ended or can go no further by itself. */
  advance(): Promise<Progress>
  /** What the run waits for, in the order of their numbers. */
  waiting(): readonly (CallGroup | Sleep)[]
  progress(): { done: number; total: number } | undefined
  /** Aborts `ctx.signal`; `advance` then gives the reason, and nothing that the handler awaits of its context ever resolves. */
  abort(reason: RunAborted): void
}

/** Starts the handler. `claimed` is the task as it was claimed. */
export function startRun(
  implementation: Implementation,
  task: { id: string; attempt: number; payload: unknown },
  ports: RunPorts,
): Run {
  const open: (CallGroup | Sleep)[] = []
  let next = 0
  let steps = 0
  let checking = false
  let progress: { done: number; total: number } | undefined
  let controller: AbortController | undefined
  let aborted: RunAborted | undefined
  let finished: Progress | undefined
  let wakeUp: (progress: Progress) => void = () => undefined

  /** Ends the present `advance`, if there is one. */
  function report(result: Progress): void {
    if (result.type !== 'stuck') finished ??= result
    wakeUp(finished ?? result)
  }

  /** The handler is stuck when a whole turn of the event loop has passed, something is awaited, and no step is running. */
  function check(): void {
    if (checking) return
    checking = true
    void nextTurn().then(() => {
      checking = false
      if (open.length > 0 && steps === 0) report({ type: 'stuck' })
    })
  }

  function enter<Entry extends CallGroup | Sleep, T>(
    make: (resolve: (value: T) => void, reject: (error: Error) => void) => Entry,
  ) {
    const promise = new Promise<T>((resolve, reject) => {
      open.push(make(resolve, reject))
    })
    // A handler may await one call and never look at another one that failed.
    promise.catch(() => undefined)
    check()
    return promise
  }

  function leave(entry: CallGroup | Sleep): boolean {
    const at = open.indexOf(entry)
    if (at >= 0) open.splice(at, 1)
    return at >= 0 && !aborted
  }

  function map<C extends Contract>(
    contract: C,
    payloads: readonly unknown[],
    options: CallOptions = {},
  ): Promise<ResultOf<C>[]> {
    const first = next
    const parsed = payloads.map((payload) => parsePayload(contract, payload))
    next += parsed.length
    if (parsed.length === 0) return Promise.resolve([])
    return enter<CallGroup, ResultOf<C>[]>((resolve, reject) => ({
      type: 'call',
      ...{ first, contract, payloads: parsed, options },
      results: new Array(parsed.length),
      missing: parsed.map((_, i) => i),
      settle() {
        if (!leave(this)) return
        const failed = this.results.find((result) => result && 'error' in result)
        if (failed && 'error' in failed) reject(failed.error)
        else
          resolve(
            this.results.map((result) => (result && 'value' in result ? result.value : undefined)) as ResultOf<C>[],
          )
      },
    }))
  }

  const ctx: Context = {
    taskId: task.id,
    kind: implementation.contract.kind,
    attempt: task.attempt,
    idempotencyKey: task.id,
    get signal() {
      controller ??= new AbortController()
      if (aborted && !controller.signal.aborted) controller.abort(aborted)
      return controller.signal
    },
    async call(contract, payload, options) {
      const [result] = await map(contract, [payload], options)
      return result as ResultOf<typeof contract>
    },
    async map(contract, payloads, options) {
      return map(contract, payloads, options)
    },
    async step<T>(name: string, effect: () => T | Promise<T>): Promise<T> {
      const n = next++
      steps++
      try {
        const known = await ports.loadStep(n, name)
        if (known !== null) return JSON.parse(known) as T
        const json = JSON.stringify((await effect()) ?? null)
        await ports.storeStep(n, name, json)
        return JSON.parse(json) as T
      } finally {
        steps--
        check()
      }
    },
    sleep(ms) {
      const first = next++
      return enter<Sleep, void>((resolve) => ({
        type: 'sleep',
        ...{ first, ms, until: null, stored: false },
        settle() {
          if (leave(this)) resolve()
        },
      }))
    },
    progress(done, total) {
      progress = { done, total }
    },
    emit: (chunk) => ports.emit(chunk),
  }

  void (async () => implementation.handler(task.payload, ctx))().then(
    (value) => report({ type: 'returned', value }),
    (error: unknown) => report({ type: 'threw', error }),
  )

  return {
    taskId: task.id,
    advance() {
      if (finished) return Promise.resolve(finished)
      return new Promise((resolve) => {
        wakeUp = resolve
        check()
      })
    },
    waiting: () => open.toSorted((a, b) => a.first - b.first),
    progress: () => progress,
    abort(reason) {
      if (aborted) return
      aborted = reason
      controller?.abort(reason)
      report({ type: 'threw', error: reason })
    },
  }
}

/** The error for a call that is not the one of the run before. */
export function mismatch(task: { id: string; kind: string }, n: number, before: string, now: string): HistoryMismatch {
  return new HistoryMismatch(
    `Call ${n} of ${task.kind} task ${task.id} was ${before} in an earlier run, and is ${now} now (${childId(task.id, n)}). ` +
      'A handler must make the same calls in the same order each time: keep time, randomness and other side effects in ctx.step.',
  )
}
