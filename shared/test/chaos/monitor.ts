import { connect, type Socket } from 'node:net'
import { readEnvelope } from '#shared/task/record.ts'
import { CONTROL } from '../redis-cluster.ts'
import type { Commit } from './recording.ts'

/** What was seen of one life of a Redis, or of a partition. */
export interface Sightings {
  readonly commits: Commit[]
  /** Root's id → when it was stored first. */
  readonly stored: Map<string, number>
  /** Ids that were put into a queue as new tasks, and those for which that happened again. */
  readonly queued: Set<string>
  readonly queuedTwice: string[]
  /** Id → the token that holds it. */
  readonly holders: Map<string, string>
}

export function newSightings(): Sightings {
  return { commits: [], stored: new Map(), queued: new Set(), queuedTwice: [], holders: new Map() }
}

/** What MONITOR tells of a Redis. */
export interface Monitor {
  /** Resolves when all that Redis has sent was read. */
  readonly ended: Promise<void>
  /** Resolves when the line was read in which Redis tells of a command with this word in it. */
  told(word: string): Promise<void>
  close(): void
}

/**
 * Follows what a Redis does, from now on. Redis tells it before it answers those who asked for it. `of` says where to
 * note what concerns a prefix of keys.
 */
export async function startMonitor(port: number, of: (prefix: string) => Sightings): Promise<Monitor> {
  const reader = createMonitorReader(of)
  const awaited = new Map<string, () => void>()
  const socket: Socket = connect(port, '127.0.0.1')
  socket.setNoDelay(true)
  const started = Promise.withResolvers<void>()
  const ended = Promise.withResolvers<void>()
  let rest = ''
  socket.on('connect', () => socket.write(`CLIENT SETNAME ${CONTROL}\r\nMONITOR\r\n`))
  let accepted = 0
  socket.on('error', (error) => started.reject(error))
  socket.on('close', () => ended.resolve())
  socket.on('data', (data) => {
    const lines = (rest + data.toString('latin1')).split('\r\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (line === '+OK' && ++accepted === 2) started.resolve()
      else reader.read(line)
      for (const [word, resolve] of awaited) {
        if (!line.includes(word)) continue
        resolve()
        awaited.delete(word)
      }
    }
  })
  await started.promise
  return {
    ended: ended.promise,
    told: (word) => Promise.race([ended.promise, new Promise<void>((resolve) => awaited.set(word, resolve))]),
    close: () => socket.destroy(),
  }
}

/**
 * Reads lines of MONITOR. A script's own call comes first, with its arguments: there stands by which token a task is ended. The commands
 * inside follow: there stand the token that holds a task and each final record.
 */
function createMonitorReader(of: (prefix: string) => Sightings) {
  let ending = new Map<string, string>()
  /** Those that the script which runs now has taken off their holders: until it began they were held. */
  const released = new Map<string, Map<string, string>>()

  function read(line: string): void {
    const inner = line.includes(' lua] ')
    if (!inner && !/\] "(evalsha|eval)"/i.test(line)) return
    if (!inner) {
      ending = endings(line)
      for (const [id, holders] of released) holders.delete(id)
      released.clear()
      return
    }
    if (/ lua\] "LPUSH" "[^"]*_task_queue(:high|:low)?"/i.test(line)) readQueued(line)
    if (!/ lua\] "(HSET|HDEL)" "[^"]*tasks(:live)?"/i.test(line)) return
    const [command = '', key = '', ...fields] = argumentsOf(line)
    const at = Number(line.slice(1, line.indexOf(' '))) * 1000
    const live = key.endsWith('tasks:live')
    const { commits, stored, holders } = of(key.slice(0, key.lastIndexOf('tasks')))
    if (command.toUpperCase() !== 'HSET') {
      if (live) for (const field of fields.filter(isHolder)) released.set(field.slice(0, -1), holders)
      return
    }
    for (let i = 0; i + 1 < fields.length; i += 2) {
      const [id = '', value = ''] = fields.slice(i, i + 2)
      if (!live) {
        commits.push({ id, at, record: value, token: ending.get(id) ?? null, holder: holders.get(id) ?? null })
        continue
      }
      if (isHolder(id)) {
        const [token = ''] = value.split(' ', 1)
        holders.set(id.slice(0, -1), token)
        released.delete(id.slice(0, -1))
      } else if (!id.includes('.') && !stored.has(id)) stored.set(id, at)
    }
  }
  /** New tasks come to the back; whatever comes back goes to the front. */
  function readQueued(line: string): void {
    const [, key = '', ...envelopes] = argumentsOf(line)
    const { queued, queuedTwice } = of(/^.*?\}:|^/.exec(key)?.[0] ?? '')
    for (const envelope of envelopes) {
      const id = readEnvelope(envelope)?.task_id
      if (id === undefined) continue
      if (queued.has(id)) queuedTwice.push(id)
      queued.add(id)
    }
  }
  return { read }
}

/** Whether a field of the live tasks tells who holds one. */
function isHolder(field: string): boolean {
  return field.endsWith('\n')
}

/** Of a call of settle: id → the token by which it is ended. Ids and records follow their number, before which the head stands, and a parent's id (settle.lua). */
function endings(line: string): Map<string, string> {
  const found = new Map<string, string>()
  if (!line.includes('"end ')) return found
  const args = argumentsOf(line)
  args.forEach((arg, i) => {
    const [, parent, token] = /^end \d+ (\d+)\S* \S+ (\S+)$/.exec(arg) ?? []
    if (token === undefined) return
    const at = i + (parent === '0' ? 1 : 2)
    for (let n = 0; n < Number(args[at]); n++) found.set(args[at + 1 + 2 * n] ?? '', token)
  })
  return found
}

function argumentsOf(line: string): string[] {
  return Array.from(line.matchAll(/"((?:[^"\\]|\\.)*)"/g), ([, text = '']) => unescaped(text))
}

const ESCAPES: Record<string, string> = { n: '\n', r: '\r', t: '\t', a: '\x07', b: '\b' }

function unescaped(text: string): string {
  if (!text.includes('\\')) return text
  const bytes = text.replaceAll(/\\(?:x([0-9a-f]{2})|(.))/g, (_, hex: string | undefined, letter: string) =>
    hex === undefined ? (ESCAPES[letter] ?? letter) : String.fromCharCode(Number.parseInt(hex, 16)),
  )
  return Buffer.from(bytes, 'latin1').toString('utf8')
}
