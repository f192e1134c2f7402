import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import type { Broker } from '#shared/broker/broker.ts'
import { StoreUnavailable } from '#shared/task/errors.ts'
import { type Answer, type Call, type Place, pack, unpack } from './broker-lines.ts'

/** Brokers that are held by another process: the suite that judges them runs here, and their drivers there. */
export interface Elsewhere {
  open(place: Place, now: () => number): Promise<Broker>
  stop(): void
}

const METHODS = [
  ...(['enqueue', 'claim', 'settle', 'extend', 'get', 'cancel', 'remove', 'reserve', 'retry', 'list'] as const),
  ...(['stats', 'kinds', 'sweep', 'emit', 'ping', 'close'] as const),
]
const ERRORS: Record<string, new (message: string) => Error> = { StoreUnavailable, TypeError }

/** Starts the process, by the command that runs a program on its runtime. */
export function startElsewhere(command: readonly string[]): Elsewhere {
  const host = Bun.spawn([...command, new URL('broker-host.ts', import.meta.url).pathname], {
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
  })
  const calls = new Map<number, PromiseWithResolvers<unknown>>()
  const listeners = new Map<number, (...event: unknown[]) => void>()
  let ids = 0

  function settle(answer: Answer): void {
    const call = calls.get(answer.id)
    if ('event' in answer) listeners.get(answer.id)?.(...answer.event)
    else if ('error' in answer) call?.reject(new (ERRORS[answer.error.name] ?? Error)(answer.error.message))
    else call?.resolve(answer.value)
  }

  async function read(): Promise<void> {
    // The types of Bun's streams and of Node's do not know each other.
    for await (const line of createInterface({ input: Readable.fromWeb(host.stdout as never) })) {
      settle(unpack(line) as Answer)
    }
    for (const { reject } of calls.values()) reject(new Error('The process that holds the brokers has ended.'))
  }
  void read()

  function send(call: Omit<Call, 'id'>, id = ++ids): Promise<unknown> {
    const settled = Promise.withResolvers<unknown>()
    calls.set(id, settled)
    // A test may look at it only after others.
    settled.promise.catch(() => {})
    host.stdin.write(`${pack({ id, ...call })}\n`)
    host.stdin.flush()
    return settled.promise
  }

  return {
    async open(place, now) {
      const broker = ++ids
      const call = (method: Call['method'], args: unknown[], id?: number) =>
        send({ broker, now: now(), method, args }, id)
      async function listen(method: 'subscribe' | 'watch', args: unknown[], heard: (...event: never[]) => void) {
        const id = ++ids
        listeners.set(id, heard as (...event: unknown[]) => void)
        await call(method, args, id)
        return { close: async () => void (await call('unsubscribe', [id])) }
      }
      await call('open', [place])
      const methods = METHODS.map((method) => [method, (...args: unknown[]) => call(method, args)])
      return {
        ...Object.fromEntries(methods),
        subscribe: (kinds, wake) => listen('subscribe', [kinds], wake),
        watch: (on) => listen('watch', [], on),
      } satisfies Partial<Broker> as Broker
    },
    stop: () => host.kill('SIGKILL'),
  }
}
