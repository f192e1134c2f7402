import { readRecord } from '#shared/task/record.ts'
import { type FinalRecord, finalState, rootOf } from '#shared/task/task.ts'
import { expected } from './kinds.ts'
import type { Acknowledged, Dump, Life, Recording } from './recording.ts'

/** All that can be found wrong. */
export const RULES = [
  'an acknowledged task is lost',
  'a task has not ended',
  'a parent waits for ever',
  'a task has not exactly one final state',
  'a result changed after it was seen',
  'a final record changed',
  'a stored result is lost',
  'a result is wrong',
  'a task was given up that had attempts left',
  'a task was committed twice',
  'a task was queued twice',
  'a task was committed without its lease',
  'a step has two results',
  'a result is of no step that ran',
  'a key stands for two tasks',
  'a cancelled task went on',
  'a child has no parent',
  'a queued task is in no queue',
  'something is left over',
] as const

export type Rule = (typeof RULES)[number]

export interface Violation {
  readonly rule: Rule
  readonly id: string
  readonly detail: string
}

export interface Verdict {
  readonly violations: Violation[]
  /** Acknowledged, and gone with a crash within the time that `everysec` leaves open. */
  readonly lost: number
  /** Final records, and those of steps, that such a crash took back: they ran again. */
  readonly takenBack: number
  /** Failed since their one attempt was lost with its worker. */
  readonly givenUp: number
  /** Runs of the task that needed most of them. */
  readonly mostAttempts: number
  readonly cancelled: number
  /** Steps that ran more than once, since their worker died before the result was stored. */
  readonly stepsRunAgain: number
  /** Commits whose lease was checked. */
  readonly leasesChecked: number
}

/** Judges what a run has seen. Pure: the same recording gives the same verdict. */
export function check(recording: Recording): Verdict {
  const violations: Violation[] = []
  const report = (rule: Rule, id: string, detail: string) => void violations.push({ rule, id, detail })
  const { end, lives } = recording
  const takenBack = new Set<string>()
  for (const part of Map.groupBy(lives, (life) => life.part).values()) {
    part.forEach((life, i) => {
      const next = part[i + 1]?.start ?? end
      for (const id of checkLife(life, next, report)) takenBack.add(id)
      checkQueued(life, report)
      if (i > 0) checkKept(part[i - 1]?.start, life.start, report)
    })
    checkKept(part.at(-1)?.start, end, report)
  }
  const lost = checkLosses(recording, report)
  checkEnd(end, report)
  checkKeys(recording, lost, report)
  const counts = { givenUp: 0, cancelled: 0 }
  const asked = new Map(recording.cancellations.map(({ id, at }) => [id, at]))
  for (const task of recording.acknowledged) {
    if (lost.has(task.id)) continue
    const record = readRecord(end.final.get(task.id) ?? '')
    if (!record) continue
    const state = finalState(record)
    if (state === 'cancelled' && asked.has(task.id)) counts.cancelled++
    else if (typeof asked.get(task.id) === 'number' && !takenBack.has(task.id))
      report('a cancelled task went on', task.id, JSON.stringify(record))
    else if (record.error?.type === 'worker_lost') {
      if (task.spec.kind === 'brittle') counts.givenUp++
      else report('a task was given up that had attempts left', task.id, JSON.stringify(record))
    } else checkResult(task, record, report)
  }
  checkSeen(recording, new Set([...lost, ...takenBack]), report)
  const stepsRunAgain = checkSteps(recording, lost, takenBack, report)
  return {
    ...{ violations, lost: lost.size, takenBack: takenBack.size, stepsRunAgain },
    ...counts,
    mostAttempts: [...end.final.values()].reduce((most, text) => Math.max(most, readRecord(text)?.attempt ?? 0), 0),
    leasesChecked: lives.reduce((sum, { commits }) => sum + commits.filter(isChecked).length, 0),
  }
}

type Report = (rule: Rule, id: string, detail: string) => void

const isStep = (record: string) => readRecord(record)?.step !== undefined
const isChecked = ({ token, holder }: { token: string | null; holder: string | null }) =>
  token !== null && holder !== null

/** What was committed between two crashes: once each, by who held the lease, and there after the crash. Returns what the crash took back. */
function checkLife(life: Life, next: Dump, report: Report): string[] {
  const records = new Map<string, string>()
  const takenBack: string[] = []
  for (const [id, value] of life.start.live) {
    if (value.startsWith('queued ') && !life.start.queued.has(id)) report('a queued task is in no queue', id, value)
  }
  for (const commit of life.commits) {
    const { id, record, token, holder } = commit
    const before = records.get(id) ?? life.start.final.get(id)
    if (before !== undefined && isStep(record)) {
      if (before !== record) report('a step has two results', id, `${before} and ${record}`)
    } else if (before !== undefined) report('a task was committed twice', id, `${before} and ${record}`)
    if (isChecked(commit) && token !== holder)
      report('a task was committed without its lease', id, `by ${token}, while ${holder} held it`)
    records.set(id, record)
    const kept = next.final.get(id)
    if (kept === record || before !== undefined) continue
    if (life.safeUntil !== null && commit.at >= life.safeUntil) takenBack.push(id)
    else report('a stored result is lost', id, `${record} became ${kept}`)
  }
  return takenBack
}

/** A new task is put into a queue once; after a crash again, if that took it. */
function checkQueued({ start, queued = new Set(), queuedTwice = [] }: Life, report: Report): void {
  for (const id of queuedTwice) report('a task was queued twice', id, 'within one life of the store')
  for (const id of queued) {
    if (start.live.has(id) || start.final.has(id)) report('a task was queued twice', id, 'it was there already')
  }
}

/** What has ended stays as it is. */
function checkKept(before: Dump | undefined, after: Dump, report: Report): void {
  for (const [id, record] of before?.final ?? []) {
    const kept = after.final.get(id)
    if (kept !== record) report('a final record changed', id, `${record} became ${kept}`)
  }
}

/** Acknowledged tasks that a crash took: returns those that it was allowed to take. */
function checkLosses({ acknowledged, lives, end }: Recording, report: Report): Set<string> {
  const lost = new Set<string>()
  for (const { id, at } of acknowledged) {
    if (end.final.has(id) || end.live.has(id)) continue
    // Stored after what was safe in the last life that knew it; one that no life knew was acknowledged just before a crash.
    const life = lives.findLast(({ stored, start }) => stored.has(id) || start.live.has(id) || start.final.has(id))
    const storedAt = life ? (life.stored.get(id) ?? 0) : at
    const { safeUntil } = life ?? lives.findLast(({ crashedAt }) => crashedAt !== null && crashedAt <= at + 1_000) ?? {}
    const mayBeLost = typeof safeUntil === 'number' && storedAt >= safeUntil && life?.replicated !== true
    if (mayBeLost) lost.add(id)
    else report('an acknowledged task is lost', id, `acknowledged ${at}, stored ${storedAt}, safe until ${safeUntil}`)
  }
  return lost
}

function checkEnd(end: Dump, report: Report): void {
  for (const [id, value] of end.live) {
    if (end.final.has(id)) report('a task has not exactly one final state', id, 'it is live as well')
    const waits = value.startsWith('waiting ')
    report(waits ? 'a parent waits for ever' : 'a task has not ended', id, value)
  }
  for (const entry of end.left) report('something is left over', '', entry)
  for (const [id, text] of end.final) {
    if (isStep(text)) continue
    const record = readRecord(text)
    const states = end.ended.get(id) ?? []
    const state = record && finalState(record)
    if (states.length !== 1 || states[0] !== state)
      report(
        'a task has not exactly one final state',
        id,
        `its record says ${state}, and it is in ${states.join(', ')}`,
      )
    if (
      id !== rootOf(id) &&
      !end.final.has(id.slice(0, id.lastIndexOf('.'))) &&
      !end.live.has(id.slice(0, id.lastIndexOf('.')))
    )
      report('a child has no parent', id, text)
  }
  for (const id of end.ended.keys()) {
    if (!end.final.has(id)) report('a task has not exactly one final state', id, 'it is listed, and has no record')
  }
}

function checkKeys({ acknowledged }: Recording, lost: ReadonlySet<string>, report: Report): void {
  const ids = new Map<string, string>()
  for (const { key, id } of acknowledged) {
    if (key === null || lost.has(id)) continue
    const before = ids.get(key)
    if (before !== undefined && before !== id) report('a key stands for two tasks', id, `${key} was ${before} before`)
    ids.set(key, id)
  }
}

function checkResult({ id, spec }: Acknowledged, record: FinalRecord, report: Report): void {
  const must = expected(spec)
  if (must === null && finalState(record) === 'succeeded') return
  const is = record.error ? { error: record.error.type } : { result: JSON.parse(resultJson(record)) as unknown }
  if (!Bun.deepEquals(is, must))
    report('a result is wrong', id, `${JSON.stringify(record)}, not ${JSON.stringify(must)}`)
}

const resultJson = ({ result, content_type }: FinalRecord) =>
  content_type === 'application/json' ? result : JSON.stringify(result)

/** Whatever a caller was shown of an ended task is what all others are shown, then and later. */
function checkSeen({ seen, end }: Recording, excused: ReadonlySet<string>, report: Report): void {
  for (const { id, view } of seen) {
    if (excused.has(id)) continue
    const record = readRecord(end.final.get(id) ?? '')
    const now = record && viewOf(record)
    if (now !== view) report('a result changed after it was seen', id, `${view} became ${now}`)
  }
}

/** A record as the manager shows it, as far as it may never change. */
export function viewOf(record: FinalRecord): string {
  const { status_code, attempt, finished_at } = record
  const status = finalState(record)
  return JSON.stringify({
    status,
    result: status === 'succeeded' ? JSON.parse(resultJson(record)) : null,
    status_code,
    error: record.error ?? null,
    attempt,
    finished_at: new Date(finished_at ?? 0).toISOString(),
  })
}

/** Each result of `steps` is what was recorded of its steps, and each of these is what a run of that step gave. Returns how many ran again. */
function checkSteps(
  { acknowledged, ran, end }: Recording,
  lost: ReadonlySet<string>,
  takenBack: ReadonlySet<string>,
  report: Report,
): number {
  const runs = new Map<string, string[]>()
  for (const { id, step, value } of ran) {
    const key = `${id} ${step}`
    runs.set(key, [...(runs.get(key) ?? []), value])
  }
  for (const { id, spec } of acknowledged) {
    const record = readRecord(end.final.get(id) ?? '')
    if (spec.kind !== 'steps' || lost.has(id) || !record || finalState(record) !== 'succeeded') continue
    const given = JSON.parse(record.result) as string[]
    if (given.length !== spec.payload.count) report('a result is wrong', id, record.result)
    const stride = spec.payload.napMs > 0 ? 2 : 1
    given.forEach((value, i) => {
      const entry = `${id}.${i * stride}`
      const stored = readRecord(end.final.get(entry) ?? '')?.result
      // A run whose lease outlived the crash goes on with what it has in hand.
      const gone = stored === undefined && takenBack.has(entry)
      if (!gone && stored !== JSON.stringify(value))
        report('a step has two results', id, `${value}, recorded as ${stored}`)
      if (!runs.get(`${id} step ${i}`)?.includes(value)) report('a result is of no step that ran', id, value)
    })
  }
  return [...runs.values()].filter((values) => values.length > 1).length
}
