import { expect, test } from 'bun:test'
import type { FinalState } from '#shared/task/task.ts'
import { check, RULES, type Rule, viewOf } from './check.ts'
import type { Acknowledged, Commit, Life, Recording } from './recording.ts'

/** A recording that its test may spoil. */
type Spoiled = Omit<Recording, 'lives' | 'end'> & { lives: SpoiledLife[]; end: SpoiledDump }
type SpoiledLife = Omit<Life, 'start' | 'commits'> & { start: SpoiledDump; commits: Commit[] }
interface SpoiledDump {
  at: number
  final: Map<string, string>
  live: Map<string, string>
  ended: Map<string, FinalState[]>
  queued: Set<string>
  left: string[]
}

const BEGAN = 1_700_000_000_000
const CRASHED = BEGAN + 10_000

const record = (result: unknown) => ({
  ...{ result: JSON.stringify(result), status_code: 200, status: 'succeeded' as const, attempt: 1 },
  ...{ content_type: 'application/json', finished_at: BEGAN + 2_000 },
})
const step = (value: unknown) =>
  JSON.stringify({
    ...{ result: JSON.stringify(value), status_code: 200 },
    content_type: 'application/json',
    step: 'step 0',
  })
const cancelled = JSON.stringify({
  ...{ result: 'The task was cancelled.', status_code: 499, status: 'cancelled', attempt: 1, finished_at: BEGAN },
  error: { type: 'cancelled', message: 'The task was cancelled.' },
})
const sum = (value: number) => ({ kind: 'sum' as const, payload: { num1: value, num2: 0 } })
const dump = (): SpoiledDump => ({
  ...{ at: BEGAN, final: new Map(), live: new Map(), ended: new Map(), queued: new Set<string>(), left: [] },
})

/** Two lives of a store, with a sum, a sequence and its child, a task of one step and one that was cancelled; all as it should be. */
function clean(): Spoiled {
  const finals: [string, string][] = [
    ['early', JSON.stringify(record(5))],
    ['parent', JSON.stringify(record(1))],
    ['parent.0', JSON.stringify(record(1))],
    ['stepped', JSON.stringify(record(['made']))],
    ['stepped.0', step('made')],
    ['stopped', cancelled],
  ]
  const life = (from: number): SpoiledLife => ({
    start: { ...dump(), at: from },
    ...{ commits: [], stored: new Map<string, number>(), safeUntil: null, crashedAt: null },
  })
  const first = { ...life(BEGAN), safeUntil: CRASHED - 1_000, crashedAt: CRASHED }
  const second = life(CRASHED + 500)
  const end = dump()
  for (const [id, text] of finals) {
    const token = id === 'stopped' || id === 'stepped.0' ? null : `token of ${id}`
    first.commits.push({ id, at: BEGAN + 2_000, record: text, token, holder: token })
    if (!id.includes('.')) first.stored.set(id, BEGAN + 1_000)
    second.start.final.set(id, text)
    end.final.set(id, text)
    if (id !== 'stepped.0') end.ended.set(id, [id === 'stopped' ? 'cancelled' : 'succeeded'])
  }
  const at = BEGAN + 1_010
  return {
    acknowledged: [
      { id: 'early', spec: sum(5), key: 'key', at },
      { id: 'parent', spec: { kind: 'sequence', payload: { n: 1 } }, key: null, at },
      { id: 'stepped', spec: { kind: 'steps', payload: { count: 1, napMs: 0 } }, key: null, at },
      { id: 'stopped', spec: sum(7), key: null, at },
    ],
    cancellations: [{ id: 'stopped', at: BEGAN + 1_500 }],
    seen: [{ id: 'early', at: BEGAN + 3_000, view: viewOf(record(5)) }],
    ran: [{ id: 'stepped', step: 'step 0', value: 'made' }],
    lives: [first, second],
    end,
  }
}

const rulesOf = (recording: Spoiled) => [...new Set(check(recording).violations.map(({ rule }) => rule))]
const lifeOf = (recording: Spoiled, n: number) => recording.lives[n] as SpoiledLife
const forget = (recording: Spoiled, id: string) => {
  for (const { start, commits } of recording.lives) {
    start.final.delete(id)
    commits.splice(0, commits.length, ...commits.filter((commit) => commit.id !== id))
  }
  recording.end.final.delete(id)
  recording.end.ended.delete(id)
}

test('finds nothing wrong with a run in which all was well', () => {
  const verdict = check(clean())
  expect(verdict.violations).toEqual([])
  expect(verdict).toMatchObject({ lost: 0, takenBack: 0, givenUp: 0, cancelled: 1, leasesChecked: 4 })
})

const worker_lost = JSON.stringify({
  ...{ result: 'The task was given up.', status_code: 500, status: 'failed', attempt: 6, finished_at: BEGAN + 2_000 },
  error: { type: 'worker_lost', message: 'The task was given up.' },
})
/** As if that had been its end from the first. */
const giveUp = (recording: Spoiled, id: string) => {
  for (const { start, commits } of recording.lives) {
    if (start.final.has(id)) start.final.set(id, worker_lost)
    commits.forEach((commit, i) => {
      if (commit.id === id) commits[i] = { ...commit, record: worker_lost }
    })
  }
  recording.end.final.set(id, worker_lost)
  recording.end.ended.set(id, ['failed'])
  recording.seen.length = 0
}

/** One way to break each promise. */
const spoils: Record<Rule, (recording: Spoiled) => void> = {
  'an acknowledged task is lost': (recording) => {
    recording.seen.length = 0
    forget(recording, 'early')
  },
  'a task has not ended': ({ end }) => end.live.set('other', 'running - 0 0 0 0 2 sum -\n{}'),
  'a parent waits for ever': ({ end }) => end.live.set('other', 'waiting - 0 0 1 0 2 sequence -\n{}'),
  'a task has not exactly one final state': ({ end }) => end.ended.set('early', ['succeeded', 'failed']),
  'a result changed after it was seen': ({ seen }) =>
    seen.push({ id: 'early', at: BEGAN, view: viewOf({ ...record(5), attempt: 2 }) }),
  'a final record changed': (recording) => {
    const other = JSON.stringify({ ...record(5), attempt: 2 })
    recording.seen.length = 0
    recording.end.final.set('early', other)
  },
  'a stored result is lost': (recording) => {
    lifeOf(recording, 1).start.final.delete('early')
  },
  'a result is wrong': (recording) => {
    recording.acknowledged[0] = { id: 'early', spec: sum(6), key: null, at: BEGAN }
  },
  'a task was given up that had attempts left': (recording) => giveUp(recording, 'early'),
  'a task was committed twice': (recording) => {
    const [commit] = lifeOf(recording, 0).commits as [Commit]
    lifeOf(recording, 1).commits.push(commit)
  },
  'a task was queued twice': ({ lives }) => {
    lives[1] = { ...(lives[1] as SpoiledLife), queued: new Set(['early']) }
  },
  'a task was committed without its lease': (recording) => {
    const { commits } = lifeOf(recording, 0)
    commits[0] = { ...(commits[0] as Commit), holder: 'another' }
  },
  'a step has two results': (recording) => {
    const commit = lifeOf(recording, 0).commits.find(({ id }) => id === 'stepped.0') as Commit
    lifeOf(recording, 0).commits.unshift({ ...commit, record: step('made before') })
  },
  'a result is of no step that ran': ({ ran }) => {
    ran.length = 0
  },
  'a key stands for two tasks': ({ acknowledged }) =>
    acknowledged.push({ id: 'parent', spec: { kind: 'sequence', payload: { n: 1 } }, key: 'key', at: BEGAN }),
  'a cancelled task went on': ({ cancellations }) => cancellations.push({ id: 'early', at: BEGAN }),
  'a child has no parent': (recording) => {
    recording.acknowledged.splice(1, 1)
    forget(recording, 'parent')
  },
  'a queued task is in no queue': (recording) =>
    lifeOf(recording, 1).start.live.set('other', 'queued - 0 0 0 0 2 sum -\n{}'),
  'something is left over': ({ end }) => end.left.push('sum_task_queue:running: early'),
}

for (const rule of RULES) {
  test(`finds it when ${rule}`, () => {
    const recording = clean()
    spoils[rule](recording)
    expect(rulesOf(recording)).toContain(rule)
  })
}

test('counts what a crash took within the last second before it, and nothing older', () => {
  const recording = clean()
  const acknowledge = (id: string, at: number) => {
    recording.acknowledged.push({ id, spec: sum(1), key: null, at })
    lifeOf(recording, 0).stored.set(id, at)
  }
  acknowledge('within', CRASHED - 900)
  expect(check(recording)).toMatchObject({ lost: 1, violations: [] })
  acknowledge('before', CRASHED - 1_100)
  expect(check(recording)).toMatchObject({ lost: 1, violations: [{ id: 'before' }] })
})

test('a crash takes nothing that was acknowledged where a replica must have it before', () => {
  const recording = clean()
  recording.acknowledged.push({ id: 'within', spec: sum(1), key: null, at: CRASHED - 10 })
  lifeOf(recording, 0).stored.set('within', CRASHED - 20)
  expect(check(recording)).toMatchObject({ lost: 1, violations: [] })
  recording.lives[0] = { ...lifeOf(recording, 0), replicated: true }
  expect(check(recording)).toMatchObject({ lost: 0, violations: [{ id: 'within' }] })
})

test('parts of a store crash by themselves', () => {
  const recording = clean()
  const [first, second] = recording.lives as [SpoiledLife, SpoiledLife]
  const other = { ...second, part: 'b', start: dump() }
  recording.lives.splice(0, 2, { ...first, part: 'a' }, other, { ...second, part: 'a' })
  expect(check(recording).violations).toEqual([])
  recording.lives[1] = { ...other, queuedTwice: ['early'] }
  expect(check(recording)).toMatchObject({ violations: [{ rule: 'a task was queued twice', id: 'early' }] })
})

test('takes back a result within the last second only', () => {
  const recording = clean()
  const text = JSON.stringify(record(5))
  lifeOf(recording, 1).start.final.delete('early')
  const { commits } = lifeOf(recording, 0)
  commits[0] = { ...(commits[0] as Commit), at: CRASHED - 500 }
  lifeOf(recording, 1).commits.push({ ...(commits[0] as Commit), at: CRASHED + 3_000 })
  recording.end.final.set('early', text)
  expect(check(recording)).toMatchObject({ takenBack: 1, violations: [] })
})

test('finds each task of a batch that ended as worker_lost, and lets those be that have one attempt', () => {
  const recording = clean()
  const add = (id: string, spec: Acknowledged['spec']) => {
    recording.acknowledged.push({ id, spec, key: null, at: BEGAN })
    const { commits, stored } = lifeOf(recording, 0)
    commits.push({ id, at: BEGAN + 2_000, record: worker_lost, token: 'token', holder: 'token' })
    stored.set(id, BEGAN)
    lifeOf(recording, 1).start.final.set(id, worker_lost)
    recording.end.final.set(id, worker_lost)
    recording.end.ended.set(id, ['failed'])
  }
  add('brittle', { kind: 'brittle', payload: { ms: 5, value: 1 } })
  expect(check(recording)).toMatchObject({ givenUp: 1, violations: [] })
  const batch = Array.from({ length: 50 }, (_, i) => `batch-${i}`)
  for (const id of batch) add(id, sum(1))
  const { violations, givenUp } = check(recording)
  expect(violations.map(({ id }) => id)).toEqual(batch)
  expect(new Set(violations.map(({ rule }) => rule))).toEqual(new Set(['a task was given up that had attempts left']))
  expect(givenUp).toBe(1)
})
