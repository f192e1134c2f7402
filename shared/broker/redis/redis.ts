import { StoreUnavailable } from '#shared/task/errors.ts'
import { ENVELOPE_END, readRecord } from '#shared/task/record.ts'
import { FINAL_STATES, finalState, rootOf } from '#shared/task/task.ts'
import type {
  Broker,
  BrokerOptions,
  Cancelled,
  Claim,
  ClaimRequest,
  Foreign,
  Listed,
  Stored,
  Swept,
} from '../broker.ts'
import { requireTimes } from '../times.ts'
import { AnswerLost, type RedisClient } from './client.ts'
import { absentKey, EVENT_CHANNEL, kindKeys, kindsKey, partitionKeys, pingKey, WAKE_CHANNEL } from './keys.ts'
import { type Script, scripts } from './scripts.ts'
import {
  type Arg,
  addStats,
  claimOf,
  endedArgs,
  endedListed,
  eventOf,
  foreignOf,
  KEY_OF,
  type KindNumbers,
  kindNumbers,
  liveListed,
  merge,
  newTaskArgs,
  orderWord,
  outcomeArgs,
  statsOf,
  storedOf,
  wakesOf,
} from './wire.ts'

/** A call that has taken so long is not sent again: somebody waits for its answer. */
const GIVE_UP_MS = 4_000

/** What a sweep gave as expired is given to nobody else for so long. */
const SWEEP_LEASE_MS = 60_000

/** Envelopes that a list reads at once where it meets such as have no id. */
const PASS_OVER = 100

/** Characters of envelopes after which a claim goes to no other partition: each gives about a megabyte at most. */
const ENOUGH_CHARS = 900_000

const NOTHING: Claim = { tasks: [], nextDueAt: null }

/**
 * The port on Redis 7 or newer, over any client. With `partitions` > 1 the keys of partition i carry the prefix `{i}:`; a task and all its descendants
 * share a partition. A batch is then atomic for each partition.
 */
export function createRedisBroker(
  client: RedisClient,
  options: BrokerOptions & {
    partitions?: number
    /** Prefix of all keys, for several installations in one database. */
    namespace?: string
    /** Milliseconds before a call whose answer was lost is sent again, one entry a try. */
    resendAfterMs?: readonly number[]
  } = {},
): Broker {
  const { partitions = 1, namespace = '', resendAfterMs = [50, 200] } = options
  const now = options.now ?? Date.now
  let turn = 0
  let closed = false

  /** Runs a script on one partition. A call whose answer was lost is sent again with `resent` set: scripts are written so that this is harmless. */
  function run(
    script: Script,
    partition: number,
    kinds: readonly string[],
    args: (resent: boolean) => readonly Arg[],
  ): Promise<unknown> {
    const keys = keysOf(partition, (prefix) => kinds.flatMap((kind) => kindKeys(prefix, kind)))
    return send(script, keys, (resent) => [now(), namespace, kinds.length, ...kinds, ...args(resent)])
  }

  const prefixOf = (partition: number) => namespace + (partitions > 1 ? `{${partition}}:` : '')

  function keysOf(partition: number, more: (prefix: string) => string[]): string[] {
    const prefix = prefixOf(partition)
    return [...partitionKeys(prefix), ...more(prefix), ...(partitions > 1 ? [absentKey(prefix)] : [])]
  }

  async function send(script: Script, keys: string[], args: (resent: boolean) => Arg[]) {
    const began = performance.now()
    for (let tries = 0; ; tries++) {
      try {
        return await client.eval(script, keys, args(tries > 0))
      } catch (error) {
        if (!(error instanceof AnswerLost)) throw error
        const wait = resendAfterMs[tries]
        if (wait === undefined || closed || performance.now() - began > GIVE_UP_MS)
          throw new StoreUnavailable(`${error.message}.`, { cause: error })
        await new Promise((resolve) => setTimeout(resolve, wait))
      }
    }
  }

  /** Parts a batch by partition, runs `each` on every part, and puts the answers back in the batch's order. */
  async function parted<Item, Answer>(
    items: readonly Item[],
    idOf: (item: Item) => string,
    each: (part: readonly Item[], partition: number) => Promise<Answer[]>,
  ): Promise<Answer[]> {
    if (items.length === 0) return []
    if (partitions === 1) return each(items, 0)
    const parts = Map.groupBy(
      items.map((item, index) => ({ item, index })),
      ({ item }) => partitionOf(idOf(item), partitions),
    )
    const answers = new Array<Answer>(items.length)
    await Promise.all(
      Array.from(parts, async ([partition, part]) => {
        const reply = await each(
          part.map(({ item }) => item),
          partition,
        )
        part.forEach(({ index }, i) => {
          answers[index] = reply[i] as Answer
        })
      }),
    )
    return answers
  }

  /**
   * Visits the partitions one after the other, another one first each time. One that does not answer fails the whole only when the others gave
   * nothing: what they gave is held by now.
   */
  async function onEach(visit: (partition: number) => Promise<number | undefined>): Promise<void> {
    const first = turn++
    let given = 0
    let failure: unknown
    for (let i = 0; i < partitions; i++) {
      try {
        given += (await visit((first + i) % partitions)) ?? 0
      } catch (error) {
        failure ??= error
      }
    }
    if (failure !== undefined && given === 0) throw failure
  }

  /** Claims that no try of which was answered, by partition: the next one takes what they may have taken. */
  const unanswered = new Map<number, { token: string; deadline: number }>()

  /** A call that claims on one partition. Token and deadline name the claim: they stay the same when it is sent again. */
  async function claiming<T>(
    request: ClaimRequest,
    partition: number,
    kinds: KindNumbers,
    send: (args: (resent: boolean) => Arg[], token: string) => Promise<T>,
  ): Promise<T> {
    const last = unanswered.get(partition)
    unanswered.delete(partition)
    // After a long silence its leases are about to end: then what it may have taken comes back by itself.
    const before = last && last.deadline - now() > request.leaseMs / 2 ? last : undefined
    const { token, deadline } = before ?? { token: newToken(), deadline: now() + request.leaseMs }
    const order = request.kinds.map((kind) => kinds.number(kind))
    const args = (resent: boolean) => [
      ...[request.limit, deadline, token, request.takeBack ? 1 : 0, resent || before ? 1 : 0],
      ...[order.length, ...order],
    ]
    try {
      return await send(args, token)
    } catch (error) {
      unanswered.set(partition, { token, deadline })
      throw error
    }
  }

  const broker: Broker = {
    enqueue: (tasks) =>
      parted(
        tasks,
        (task) => task.id,
        async (part, partition) => {
          const kinds = kindNumbers()
          const added = newTaskArgs(part, kinds)
          const check = part.some((task) => !task.fresh)
          const reply = await run(scripts.enqueue, partition, kinds.names, (resent) => [
            check || resent ? 1 : 0,
            ...added,
          ])
          return (reply as number[]).map((created, i) => ({ id: part[i]?.id ?? '', created: created === 1 }))
        },
      ),

    async claim(request) {
      if (request.limit <= 0 || request.kinds.length === 0) return NOTHING
      const claim: Claim = { tasks: [], nextDueAt: null }
      let chars = 0
      await onEach(async (partition) => {
        const isFull = chars >= ENOUGH_CHARS
        if (isFull) claim.nextDueAt = now()
        const limit = isFull ? 0 : request.limit - claim.tasks.length
        // With enough in hand, the other partitions are only visited to put back what is due.
        if (limit <= 0 && !request.takeBack) return
        const kinds = kindNumbers()
        const taken = await claiming({ ...request, limit }, partition, kinds, async (args, token) =>
          claimOf(await run(scripts.claim, partition, kinds.names, args), token),
        )
        merge(claim, taken)
        for (const { envelope } of taken.tasks) chars += envelope.length
        return taken.tasks.length
      })
      return claim
    },

    async settle(outcomes, next) {
      const claims = next && next.limit > 0 && next.kinds.length > 0 ? next : undefined
      // The call brings the next claim, too. With several partitions tasks wait in each, and a claim of its own sees to all.
      const both = partitions === 1 && outcomes.length > 0 ? claims : undefined
      let claimed = NOTHING
      const refused: string[] = []
      await parted(
        outcomes,
        (outcome) => outcome.id,
        async (part, partition) => {
          const kinds = kindNumbers()
          const ends = outcomeArgs(part, kinds)
          const settle = async (claimArgs: (resent: boolean) => Arg[]) => {
            const args = (resent: boolean) => ends.args.concat(claimArgs(resent))
            const [numbers, , taken] = (await run(scripts.settle, partition, kinds.names, args)) as [
              number[],
              [],
              unknown,
            ]
            for (const number of numbers) refused.push(part[ends.order[number - 1] ?? 0]?.id ?? '')
            return taken
          }
          if (!both) await settle(() => [0])
          else {
            await claiming(both, partition, kinds, async (claimArgs, token) => {
              claimed = claimOf(await settle((resent) => [1, ...claimArgs(resent)]), token)
            })
          }
          return []
        },
      )
      if (claims && !both) claimed = await broker.claim(claims).catch(nothingWhenAway)
      return { refused, next: next ? claimed : null }
    },

    async extend(leases, leaseMs) {
      const deadline = now() + leaseMs
      const codes = await parted(
        leases,
        (lease) => lease.id,
        inPieces(async (some, partition) => {
          const kinds = kindNumbers()
          const args = some.flatMap(({ id, token, kind, progress }) => [
            id,
            token,
            kinds.number(kind),
            progress ? `${progress.done}/${progress.total}` : '',
          ])
          // Names the leases that these are moved to: it stays the same when the call is sent again.
          const name = newToken()
          const reply = await run(scripts.extend, partition, kinds.names, () => [
            ...[deadline, name, some.length],
            ...args,
          ])
          return (reply as (number | string)[]).map((code) => (typeof code === 'string' ? lapseOf(code) : code))
        }),
      )
      const having = (code: number) => leases.filter((_, i) => codes[i] === code).map((lease) => lease.id)
      return { lost: having(1), cancelled: having(2) }
    },

    async get(ids, { some = false, endedOnly = false } = {}) {
      const look = async (part: readonly string[], partition: number) => {
        const reply = (await run(scripts.get, partition, [], () => [
          endedOnly ? 1 : 0,
          part.length,
          ...part,
        ])) as unknown[]
        return reply.map((value, i) => storedOf(part[i] ?? '', value))
      }
      const idOf = (id: string) => id
      if (!some) return parted(ids, idOf, inPieces(look))
      // Those of one tree are in one partition.
      const [first = ''] = ids
      if (partitions === 1) return ids.length > 0 ? look(ids, 0) : []
      if (ids.every((id) => rootOf(id) === rootOf(first))) return look(ids, partitionOf(first, partitions))
      // Each partition stops by itself: what is given ends before the first that none has told.
      const found = await parted(ids, idOf, async (part, partition) => {
        const told: (Stored | null | undefined)[] = await look(part, partition)
        return Array.from(part, (_, i) => told[i])
      })
      const end = found.indexOf(undefined)
      return (end < 0 ? found : found.slice(0, end)) as (Stored | null)[]
    },

    cancel: (tasks) =>
      parted(
        tasks,
        (task) => task.id,
        async (part, partition) => {
          const kinds = kindNumbers()
          const ends = part.map((task) => ({
            ...task,
            type: 'cancel' as const,
            token: '-',
            state: 'cancelled' as const,
          }))
          const { args, order } = outcomeArgs(ends, kinds)
          const [, lengths] = (await run(scripts.settle, partition, kinds.names, () => [...args, 0])) as [[], number[]]
          const answers = new Array<Cancelled>(part.length)
          for (const [number, index] of order.entries()) {
            const calls = lengths[number] ?? -1
            answers[index] = { id: part[index]?.id ?? '', cancelled: calls >= 0, calls: Math.max(calls, 0) }
          }
          return answers
        },
      ),

    async remove(tasks) {
      const left: Foreign[] = []
      await parted(
        tasks,
        (task) => task.id,
        async (part, partition) => {
          const kinds = kindNumbers()
          const args = part.flatMap(({ id, ended }) => [id, ...endedArgs(ended, kinds)])
          const reply = await run(scripts.remove, partition, kinds.names, () => [part.length, ...args])
          left.push(...foreignOf(reply as string[]))
          return []
        },
      )
      return left
    },

    reserve(tasks, leaseMs) {
      // The end of a reservation is its token: no other caller ends one at this very moment.
      const token = String(now() + leaseMs + Math.random())
      return parted(
        tasks,
        (task) => task.id,
        async (part, partition) => {
          const args = part.flatMap((task) => [task.id, task.token ?? '-'])
          const reply = await run(scripts.reserve, partition, [], (resent) => [
            ...[resent ? 1 : 0, token, part.length],
            ...args,
          ])
          return (reply as number[]).map((reserved) => (reserved === 1 ? token : null))
        },
      )
    },

    async retry(tasks) {
      const codes = await parted(
        tasks,
        (task) => task.id,
        async (part, partition) => {
          const kinds = kindNumbers()
          const added = newTaskArgs(part, kinds)
          const more = part.flatMap(({ token, history: { calls, steps, order }, ended }) => [
            ...[token, `${calls} ${steps}`, orderWord(order), ...endedArgs(ended, kinds)],
          ])
          const args = [part.length, ...more, ...added]
          return (await run(scripts.retry, partition, kinds.names, () => args)) as number[]
        },
      )
      return tasks.filter((_, i) => codes[i] === 1).map((task) => task.id)
    },

    async list({ kind, state, after, limit }) {
      const listed: Listed[] = []
      const isFinal = FINAL_STATES.some((final) => final === state)
      // Each partition has its own order: they are read one after the other. A place is a partition and an offset, or for final states a time and how many of it.
      let [first = 0, from, skip = 0] = after
      const read = async (partition: number, begin: number | string, count: number) =>
        (await run(scripts.list, partition, [kind], () => [KEY_OF[state], begin, skip, count])) as string[]
      for (let i = first; i < partitions && listed.length < limit; i++) {
        if (isFinal) {
          const left = limit - listed.length
          listed.push(...endedListed(await read(i, from ?? '+inf', left), i, { from, skip, limit: left }))
        } else {
          // Envelopes without an id are passed over, more of them at once from the second look on.
          for (let offset = from ?? 0, least = 0, more = true; more && listed.length < limit; least = PASS_OVER) {
            const left = limit - listed.length
            const count = Math.max(left, least)
            const page = await read(i, offset, count)
            const isCut = page.at(-1) === ''
            if (isCut) page.pop()
            listed.push(...liveListed(page, i, state, offset).slice(0, left))
            offset += page.length
            more = page.length === count || isCut
            const last = listed.at(-1)
            if (isCut && last) {
              last.isCut = true
              return listed
            }
          }
        }
        from = undefined
        skip = 0
      }
      return listed
    },

    async stats(kinds) {
      const parts = await Promise.all(
        Array.from({ length: partitions }, (_, i) => run(scripts.stats, i, kinds, () => [ENVELOPE_END])),
      )
      return kinds.map((kind, k) => parts.map((part) => statsOf(kind, (part as unknown[][])[k] ?? [])).reduce(addStats))
    },

    kinds: async (noted) => (await send(scripts.kinds, [kindsKey(prefixOf(0))], () => [...noted])) as string[],

    async sweep(limit) {
      const expired: string[] = []
      const foreign: Swept['foreign'] = []
      await onEach(async (partition) => {
        const left = limit - Math.max(expired.length, foreign.length)
        if (left <= 0) return
        const args = [left, now() + SWEEP_LEASE_MS]
        const [ids, found] = (await run(scripts.sweep, partition, [], () => args)) as [string[], string[]]
        expired.push(...ids)
        foreign.push(...foreignOf(found))
        return ids.length + found.length
      })
      return { expired, foreign }
    },

    subscribe(kinds, wake) {
      return client.subscribe(
        namespace + WAKE_CHANNEL,
        (message) => {
          for (const [kind, at] of wakesOf(message)) {
            if (kinds.includes(kind)) wake(kind, at > 0 ? at : null)
          }
        },
        () => kinds.forEach((kind) => void wake(kind, null)),
      )
    },

    watch: (on) =>
      client.subscribe(
        namespace + EVENT_CHANNEL,
        (message) => {
          const event = eventOf(message)
          if (event) on(event)
        },
        () => undefined,
      ),

    async emit(chunks) {
      await Promise.all(
        chunks.map((chunk) => client.publish(namespace + EVENT_CHANNEL, JSON.stringify({ type: 'chunk', ...chunk }))),
      )
    },

    async ping() {
      // A write that is billed would be made again and again by whoever looks whether a service is well.
      if (client.isBilled) return void (await run(scripts.get, 0, [], () => [0, 0]))
      const keys = keysOf(0, (prefix) => [pingKey(prefix)])
      await send(scripts.ping, keys, () => [])
    },

    async close() {
      closed = true
      await client.close()
    },
  }

  return requireTimes(broker)
}

/** A call whose reply may stop early, when it is large: then the rest is asked for, in pieces of that size. */
function inPieces<Item, Answer>(call: (some: readonly Item[], partition: number) => Promise<Answer[]>) {
  return async (items: readonly Item[], partition: number): Promise<Answer[]> => {
    const answers: Answer[] = []
    let most = items.length
    while (answers.length < items.length) {
      const asked = items.slice(answers.length, answers.length + most)
      const reply = await call(asked, partition)
      for (const answer of reply) answers.push(answer)
      if (reply.length < asked.length) most = reply.length + 1
    }
    return answers
  }
}

/** A claim that follows what was settled must not make that look as if it had failed. */
function nothingWhenAway(error: unknown): Claim {
  if (error instanceof StoreUnavailable) return NOTHING
  throw error
}

/** Why a lease is no longer held whose task has this final record, in the terms of extend.lua. */
function lapseOf(text: string): number {
  const record = readRecord(text)
  return record !== null && finalState(record) === 'cancelled' ? 2 : 1
}

/** FNV-1a of the root's id: every language can compute it in three lines. */
export function partitionOf(id: string, partitions: number): number {
  let hash = 0x811c9dc5
  for (const byte of new TextEncoder().encode(rootOf(id))) {
    hash = Math.imul(hash ^ byte, 0x01000193) >>> 0
  }
  return hash % partitions
}

/** 60 random bits: tokens are compared for one task only. */
function newToken(): string {
  return crypto.randomUUID().replaceAll('-', '').slice(0, 16)
}
