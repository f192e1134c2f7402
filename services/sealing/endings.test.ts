/** What is kept and said of a secret, however a task ends: nothing, in any form, at any moment. */
import { describe, expect, test } from 'bun:test'
import { PermanentError } from '#shared/task/errors.ts'
import { DEFAULT_RETENTION_S } from '#shared/task/task.ts'
import { durableStores } from '#shared/test/durable-stores.ts'
import { manualClock } from '#shared/test/manual-clock.ts'
import { completion, type Kind, kinds, LEASE_MS, type Scene, useScene, writtenInAllForms } from './scene.ts'

interface Play extends Scene, Kind {
  /** Creates a task of the kind and looks at it. */
  create(options?: Record<string, unknown>): Promise<string>
}

type Ending = readonly [name: string, run: (play: Play) => Promise<void>]

const RETRY_MS = 300_000

/** What careless handlers tell of what they were given. */
function quote(payload: unknown): string {
  const texts = Object.values(payload as object).map((value) => writtenInAllForms(String(value)))
  return `I was given ${JSON.stringify(payload)}: ${texts.join('; ')}`
}

/** Holds up the first run of a kind until it is let go, whereupon it fails and quotes what it was given. */
function holdUp({ trouble }: Scene, kind: string): { begun: Promise<void>; letGo(): void } {
  const begun = Promise.withResolvers<void>()
  const held = Promise.withResolvers<void>()
  let runs = 0
  trouble[kind] = async (payload) => {
    if (++runs > 1) return
    begun.resolve()
    await held.promise
    throw new Error(quote(payload))
  }
  return { begun: begun.promise, letGo: held.resolve }
}

/** Lets time pass and runs what is due, until the task has ended. */
async function runToItsEnd(play: Play, id: string): Promise<string | null> {
  for (let round = 0; round < 10; round++) {
    await play.worker().drain()
    const status = await play.look(id)
    if (status !== 'delayed' && status !== 'waiting') return status
    play.clock.advance(RETRY_MS)
  }
  throw new Error(`Task ${id} does not end.`)
}

const endings: Ending[] = [
  [
    'when it succeeds',
    async (play) => {
      const id = await play.create()
      await play.worker().drain()
      expect(await play.look(id)).toBe('succeeded')
    },
  ],
  [
    'when the task that does the work fails, and quotes all that it was given',
    async (play) => {
      play.trouble[play.leaf] = (payload) => {
        throw new PermanentError(quote(payload))
      }
      const id = await play.create()
      await play.worker().drain()
      expect(await play.look(id)).toBe('failed')
    },
  ],
  [
    'when its own handler fails, and it is tried again by hand',
    async (play) => {
      play.trouble[play.kind] = (payload) => {
        throw new PermanentError(quote(payload))
      }
      const id = await play.create()
      await play.worker().drain()
      expect(await play.look(id)).toBe('failed')
      delete play.trouble[play.kind]
      // Its secrets were wiped when it ended.
      expect((await play.ask(`/task/${id}/retry`, 'POST')).status).toBe(play.hasSecrets ? 409 : 200)
      await play.look(id)
      expect(await runToItsEnd(play, id)).toBe(play.hasSecrets ? 'failed' : 'succeeded')
    },
  ],
  [
    'when it is retried after a failed attempt, and succeeds',
    async (play) => {
      play.trouble[play.leaf] = (payload, { attempt }) => {
        if (attempt === 1) throw new Error(quote(payload))
      }
      const id = await play.create()
      await play.worker().drain()
      expect(await play.look(id)).toBe(play.leaf === play.kind ? 'delayed' : 'waiting')
      expect(await runToItsEnd(play, id)).toBe('succeeded')
    },
  ],
  [
    'when it is retried until its attempts are used up',
    async (play) => {
      play.trouble[play.kind] = (payload) => {
        throw new Error(quote(payload))
      }
      const id = await play.create({ max_attempts: 2 })
      await play.worker().drain()
      expect(await play.look(id)).toBe('delayed')
      expect(await runToItsEnd(play, id)).toBe('failed')
    },
  ],
  [
    'when it is cancelled while it is queued',
    async (play) => {
      const id = await play.create()
      expect((await play.ask(`/task/${id}/cancel`, 'POST')).status).toBe(200)
      expect(await play.look(id)).toBe('cancelled')
      expect((await play.worker().drain()).ran).toBe(0)
      expect(await play.look(id)).toBe('cancelled')
    },
  ],
  [
    'when it is cancelled while it runs',
    async (play) => {
      const { begun, letGo } = holdUp(play, play.leaf)
      const id = await play.create()
      const drained = play.worker().drain()
      await begun
      expect(await play.look(id)).toBe(play.leaf === play.kind ? 'running' : 'waiting')
      expect((await play.ask(`/task/${id}/cancel`, 'POST')).status).toBe(200)
      expect(await play.look(id)).toBe('cancelled')
      play.clock.advance(LEASE_MS / 3)
      await drained
      letGo()
      expect(await play.look(id)).toBe('cancelled')
    },
  ],
  [
    'when it is deleted, whether it has ended or not',
    async (play) => {
      const [queued, ended] = [await play.create(), await play.create()]
      expect((await play.ask(`/task/${queued}`, 'DELETE')).status).toBe(200)
      expect(await play.look(queued)).toBe(null)
      await play.worker().drain()
      expect(await play.look(ended)).toBe('succeeded')
      expect((await play.ask(`/task/${ended}`, 'DELETE')).status).toBe(200)
      expect(await play.look(ended)).toBe(null)
    },
  ],
  [
    'when it expires',
    async (play) => {
      const id = await play.create()
      await play.worker().drain()
      play.clock.advance(DEFAULT_RETENTION_S * 1_000)
      await play.sweep()
      expect(await play.look(id)).toBe(null)
    },
  ],
  [
    'when its worker dies, and another one runs it',
    async (play) => {
      const { begun, letGo } = holdUp(play, play.leaf)
      const id = await play.create()
      // One for which time stands still extends no lease.
      const dead = play.worker({ clock: manualClock(play.clock.now()) }).drain()
      await begun
      await play.look(id)
      play.clock.advance(LEASE_MS)
      expect(await runToItsEnd(play, id)).toBe('succeeded')
      // It was not dead after all, and comes too late.
      letGo()
      await dead
      expect(await play.look(id)).toBe('succeeded')
    },
  ],
  [
    'when its worker dies in the last attempt',
    async (play) => {
      const { begun, letGo } = holdUp(play, play.kind)
      const id = await play.create({ max_attempts: 1 })
      const dead = play.worker({ clock: manualClock(play.clock.now()) }).drain()
      await begun
      play.clock.advance(LEASE_MS)
      expect(await runToItsEnd(play, id)).toBe('failed')
      letGo()
      await dead
      expect(await play.look(id)).toBe('failed')
    },
  ],
  [
    'when it is parked again and again, and each time another worker runs it from its history',
    async (play) => {
      for (const kind of new Set([play.kind, play.leaf])) play.trouble[kind] = (_, ctx) => ctx.sleep(1_000)
      const id = await play.create()
      let parked = 0
      for (let turn = 0; turn < 20; turn++) {
        const { ran } = await play.worker().drain({ maxTasks: 1 })
        const status = await play.look(id)
        if (status === 'succeeded') break
        if (ran === 0) play.clock.advance(1_000)
        else if (status === 'waiting') parked++
      }
      expect(await play.look(id)).toBe('succeeded')
      expect(parked).toBeGreaterThanOrEqual(play.leaf === play.kind ? 1 : 3)
    },
  ],
]

/** Endings of kinds whose work is done by the language model: it quotes the key in whatever it says. */
const refusals: (readonly [name: string, refusal: (key: string) => Response])[] = [
  ['when the provider refuses, and quotes the key', (key) => refusal(400, `${key}? ${writtenInAllForms(key)}`, key)],
  ['when the provider calls the key wrong', (key) => refusal(401, `Incorrect API key provided: ${key}.`, key)],
  ['when the provider answers with the key as its text', (key) => new Response(key, { status: 403 })],
  ['when the provider fails for a while', (key) => refusal(500, `We failed for ${JSON.stringify(key)}`, key)],
  [
    'when the provider’s code is the key',
    (key) => refusal(400, `Your code says it, and so does this: ${key}.`, key, key),
  ],
  ['when the provider’s code is the key, at great length', (key) => refusal(400, 'No.', key, key.repeat(10_000))],
  ['when the quota of the key is used up', (key) => refusal(429, `No quota for ${key}`, key, 'insufficient_quota')],
]

/** What the model answers, each time with the key. */
const answers: (readonly [name: string, answer: (key: string) => string])[] = [
  ['when the model answers with the key', (key) => key],
  [
    'when the model quotes the key in every form',
    (key) => `I was told ${writtenInAllForms(key)}, and JSON says ${JSON.stringify({ key })}. Why?`,
  ],
  [
    'when the model answers with a JSON that has the key',
    (key) => JSON.stringify({ key, json: JSON.stringify({ key }) }),
  ],
]

function refusal(status: number, message: string, key: string, code = 'bad'): Response {
  return Response.json({ error: { message, code } }, { status, headers: { 'X-Request-Id': key } })
}

/** A program that takes tasks without a lease, and tells all that it has seen of them. */
async function foreignWork({ store }: Scene, kind: string, statusCode: number): Promise<void> {
  const { foreign } = store
  if (!foreign) throw new Error('No foreign program speaks to this store.')
  const [, envelope = ''] = (await foreign.brpop(`${kind}_task_queue`, 1)) ?? []
  const { task_id, payload } = JSON.parse(envelope)
  const seen = [envelope, JSON.stringify(await foreign.hgetall('tasks:live')), ...Object.values(payload).map(String)]
  const result = seen.map(writtenInAllForms).join('\n')
  await foreign.hset('tasks', task_id, JSON.stringify({ result, status_code: statusCode }))
}

/** Endings on a store to which other programs speak. */
const foreignEndings: Ending[] = [
  [
    'when a foreign worker takes it, and tells all that it has seen',
    async (play) => {
      const id = await play.create()
      await foreignWork(play, play.kind, 200)
      expect(await play.look(id)).toBe('succeeded')
      await play.sweep()
      expect(await play.look(id)).toBe('succeeded')
    },
  ],
  [
    'when a foreign worker takes the task that does the work, and fails with all that it has seen',
    async (play) => {
      const id = await play.create()
      if (play.leaf !== play.kind) await play.worker({ only: play.kind }).drain()
      await foreignWork(play, play.leaf, 500)
      await play.look(id)
      await play.sweep()
      expect(await runToItsEnd(play, id)).toBe('failed')
    },
  ],
]

describe.each(durableStores)('on $name a secret is in no file, no answer and no log', ({ name, start }) => {
  const stage = useScene(start)

  describe.each(kinds)('of $kind', (kind) => {
    const play = (): Play => ({
      ...stage.scene,
      ...kind,
      async create(options = {}) {
        const { status, id } = await stage.scene.post(`/${kind.kind}`, { payload: kind.payload, options })
        expect(status).toBe(201)
        expect(await stage.scene.look(id)).toBe('queued')
        return id
      },
    })
    const here = name === 'Redis' ? [...endings, ...foreignEndings] : endings
    test.each(here)('%s', (_, run) => run(play()))

    if (!kind.hasSecrets) return
    test.each(answers)('%s', async (_, answer) => {
      stage.scene.provider = (key) => completion(answer(key))
      const acting = play()
      const id = await acting.create()
      expect(await runToItsEnd(acting, id)).toBe('succeeded')
      expect((await acting.ask(`/task/${id}`)).text).toContain('[sealed]')
    })

    test.each(refusals)('%s', async (_, refusal) => {
      stage.scene.provider = refusal
      const acting = play()
      const id = await acting.create()
      expect(await runToItsEnd(acting, id)).toBe('failed')
    })
  })
})
