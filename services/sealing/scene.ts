import { afterAll, afterEach, beforeAll, beforeEach, expect } from 'bun:test'
import { sweepOnce } from '#shared/broker/expire.ts'
import { createAuth } from '#shared/http/auth.ts'
import { createLogger } from '#shared/runtime/log.ts'
import { createKeyring, newKey } from '#shared/runtime/seal.ts'
import { type Contract, secretsIn } from '#shared/task/define.ts'
import type { Durable, DurableStore } from '#shared/test/durable-stores.ts'
import { findForms, formsOf } from '#shared/test/forms.ts'
import { type ManualClock, manualClock } from '#shared/test/manual-clock.ts'
import { type Context, type Implementation, implement } from '#shared/worker/implement.ts'
import { createWorker, type Worker } from '#shared/worker/worker.ts'
import { createApp as createCreator } from '../creator/app.ts'
import { createApp as createManager } from '../manager/app.ts'
import { createChat } from '../workers/chat/worker.ts'
import { contracts } from '../workers/contracts.ts'
import conversation from '../workers/conversation/worker.ts'
import sequence from '../workers/sequence/worker.ts'
import sum from '../workers/sum/worker.ts'

/** With what the forms of a secret write in other ways, and quotes that JSON escapes. */
export const SECRET = 'sk-"top/secret"+key=42&more?'
const SECRET_FORMS = formsOf(SECRET)

/** Like the secret, but sent where it is no secret: what does not find it would not find the secret. */
const MARKER = 'mk-"low/marker"+not=17&less?'
const MARKER_FORMS = formsOf(MARKER)
const ALL_FORMS = Object.keys(MARKER_FORMS)

export const LEASE_MS = 30_000

/** What each kind is created with: the secret wherever one belongs, and in a field that the kind does not know. */
const PAYLOADS: Record<string, Record<string, unknown>> = {
  sum: { num1: 1, num2: 2 },
  sequence: { n: 2 },
  chat: { question: 'Why?', api_key: SECRET },
  conversation: { topic: 'doors', n: 2, api_key: SECRET },
}

/** The kind of the tasks that do the work, where a kind leaves that to others. */
const LEAVES: Record<string, string> = { sequence: 'sum', conversation: 'chat' }

export interface Kind {
  readonly kind: string
  readonly contract: Contract
  readonly leaf: string
  readonly payload: Readonly<Record<string, unknown>>
  readonly hasSecrets: boolean
}

/** Every kind of the registry. */
export const kinds: Kind[] = Object.entries(contracts).map(([kind, contract]) => {
  const payload = { ...PAYLOADS[kind], unknown_field: SECRET }
  if (secretsIn(contract, payload).length !== contract.secrets.length)
    throw new Error(`The payload of ${kind} needs the secret in each of its secret fields.`)
  return { kind, contract, leaf: LEAVES[kind] ?? kind, payload, hasSecrets: contract.secrets.length > 0 }
})

/** A text written in each form. */
export function writtenInAllForms(text: string): string {
  const bytes = Buffer.from(text)
  const packed = (['base64', 'base64url', 'hex'] as const).map((encoding) => bytes.toString(encoding))
  return [text, ...packed, encodeURIComponent(text)].join(' ')
}

type Trouble = (payload: unknown, ctx: Context) => void | Promise<void>
/** Answers a request to the language model, which has this key. */
type Provider = (key: string) => Response

export interface Reply {
  readonly status: number
  readonly text: string
  /** Of the task that the answer names. */
  readonly id: string
}

/** Creator, manager and workers on one store, and everything that they say. */
export interface Scene {
  readonly store: DurableStore
  readonly clock: ManualClock
  /** What befalls the handlers of a kind before they begin. */
  readonly trouble: Record<string, Trouble>
  provider: Provider
  worker(options?: { clock?: ManualClock; only?: string }): Worker
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Reply>
  ask(path: string, method?: string, headers?: Record<string, string>): Promise<Reply>
  sweep(): Promise<unknown>
  /** Asks for a task in every way there is, and fails when the secret is in anything that was said or is kept. Gives the task's status, null when it is unknown. */
  look(id?: string): Promise<string | null>
  /** Closes the store, and looks once more at what it leaves behind. */
  close(): Promise<void>
}

/** A scene on the store that is opened with its clock. */
async function openScene(open: (options: { now: () => number }) => Promise<DurableStore>): Promise<Scene> {
  const clock = manualClock()
  const store = await open({ now: clock.now })
  const { broker } = store
  const keyring = await createKeyring([newKey()])
  const lines: string[] = []
  const answers: string[] = []
  const log = createLogger('debug', (line) => lines.push(line))
  const auth = await createAuth([{ token: 'good', scopes: ['create', 'read', 'manage'] }])
  const authorized = { Authorization: 'Bearer good' }
  const creator = createCreator({
    ...{ broker, contracts, keyring, managerUrl: 'http://manager', log, auth, now: clock.now },
  })
  const manager = createManager({ broker, contracts, log, auth, clock })
  const model = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: (request) => scene.provider(request.headers.get('Authorization')?.replace('Bearer ', '') ?? ''),
  })
  const chat = createChat({ baseUrl: `http://127.0.0.1:${model.port}/v1`, model: 'm', now: clock.now })
  const implementations: Implementation[] = [sum, chat, sequence, conversation].map(troubled)

  function troubled({ contract, handler }: Implementation): Implementation {
    return implement(contract, async (payload, ctx) => {
      await scene.trouble[contract.kind]?.(payload, ctx)
      return handler(payload, ctx)
    })
  }

  async function heard(response: Response): Promise<Reply> {
    const text = await response.text()
    answers.push(`${JSON.stringify([...response.headers])}\n${text}`)
    return { status: response.status, text, id: /"task_id":"([^"]+)"/.exec(text)?.[1] ?? '' }
  }

  /** All that was said so far. */
  const said = () => ({ answers: answers.join('\n'), log: lines.join('\n') })

  /** The secret is nowhere; and the marker, which was sent in clear, is everywhere: a search that is blind would not find it either. */
  function expectSealed(places: Record<string, string | Uint8Array>, whole: readonly string[]): void {
    const found = findForms(places, SECRET_FORMS)
    if (Object.keys(found).length > 0) throw new Error(`The secret was found: ${JSON.stringify(found)}`)
    const marked = findForms(places, MARKER_FORMS)
    for (const place of [...whole, 'answers'])
      expect({ place, forms: marked[place] }).toEqual({ place, forms: ALL_FORMS })
    expect(marked['log']).toContain('hex')
  }

  const scene: Scene = {
    store,
    clock,
    trouble: {},
    provider: () => completion('Because.'),
    worker: ({ clock: own = clock, only } = {}) =>
      createWorker({
        ...{ broker, log, keyring, clock: own, leaseMs: LEASE_MS, random: () => 0 },
        implementations: implementations.filter(({ contract }) => only === undefined || contract.kind === only),
      }),
    async post(path, body, headers = {}) {
      const text = typeof body === 'string' ? body : JSON.stringify(body)
      const given = { 'Content-Type': 'application/json', ...authorized, ...headers }
      return heard(await creator.request(path, { method: 'POST', body: text, headers: given }))
    },
    ask: async (path, method = 'GET', headers = {}) =>
      heard(await manager.request(path, { method, headers: { ...authorized, ...headers } })),
    sweep: () => sweepOnce({ broker, contracts, now: clock.now }, 1_000),
    async look(id) {
      let status: string | null = null
      if (id !== undefined) {
        const children = [`/tasks?parent=${id}`, `/task/${id}.0`, `/task/${id}.1`]
        for (const path of [`/task/${id}?wait=0`, ...children]) await scene.ask(path)
        await scene.ask(`/task/${id}`, 'GET', { Accept: 'text/plain' })
        const task = await scene.ask(`/task/${id}`)
        if (task.status === 200) {
          const view = JSON.parse(task.text) as { status: string; kind: string }
          status = view.status
          await scene.ask(`/tasks?kind=${view.kind}&status=${status}`)
        }
      }
      expectSealed({ ...(await store.files()), ...said() }, store.whole.open)
      return status
    },
    async close() {
      for (const path of ['/tasks', '/stats']) await scene.ask(path)
      await broker.close()
      const files = await store.files()
      await model.stop(true)
      expectSealed({ ...files, ...said() }, store.whole.closed)
    },
  }

  // Kept from the first moment to the last.
  const question = writtenInAllForms(MARKER)
  const marker = { payload: { question, api_key: 'another' }, options: { delay_ms: 365 * 86_400_000 } }
  const { status, id } = await scene.post('/chat', marker)
  expect(status).toBe(201)
  await scene.ask(`/task/${id}`)
  await scene.ask(`/task/${Buffer.from(MARKER).toString('hex')}`)
  return scene
}

/** An answer of the language model. */
export function completion(content: string): Response {
  return Response.json({ choices: [{ message: { role: 'assistant', content } }] })
}

/** Opens a scene for each test, on one store of theirs. */
export function useScene(start: () => Promise<Durable>): { readonly scene: Scene } {
  let durable: Durable
  let scene: Scene
  beforeAll(async () => {
    durable = await start()
  })
  afterAll(() => durable.stop())
  beforeEach(async () => {
    scene = await openScene(durable.open)
  })
  afterEach(() => scene.close())
  return {
    get scene() {
      return scene
    },
  }
}
