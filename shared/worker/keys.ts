/** What a worker does without a key for secret fields: it leaves those tasks to others, and says so. */
import type { Claimed } from '#shared/broker/broker.ts'
import type { Clock } from '#shared/runtime/clock.ts'
import { ConfigError } from '#shared/runtime/config.ts'
import type { Log } from '#shared/runtime/log.ts'
import type { Keyring } from '#shared/runtime/seal.ts'
import type { KeyMissing } from '#shared/task/errors.ts'
import type { Implementation } from './implement.ts'

/** How often it is said of one kind that its tasks wait for a key, in ms. */
const ALARM_MS = 60_000

const WHAT_TO_SET = 'set TASKER_SECRET or TASKER_SECRET_FILE, the same for all processes'

/**
 * The kinds that a worker may run: without a keyring, those without secrets.
 *
 * @throws ConfigError when none is left.
 */
export function runnable(
  implementations: readonly Implementation[],
  keyring: Keyring | null,
): readonly Implementation[] {
  const left = implementations.filter(({ contract }) => keyring || contract.secrets.length === 0)
  if (left.length > 0 || implementations.length === 0) return left
  const kinds = implementations.map(({ contract }) => contract.kind).join(', ')
  throw new ConfigError([`This worker has no key for the secret fields of ${kinds}: ${WHAT_TO_SET}`])
}

/** Says which kinds a worker leaves alone. */
export function tellLeftAlone(all: readonly Implementation[], runs: readonly Implementation[], log: Log): void {
  const kinds = all.filter((one) => !runs.includes(one)).map(({ contract }) => contract.kind)
  if (kinds.length === 0) return
  log.error(`This worker has no key for secret fields and does not run kinds that have them: ${WHAT_TO_SET}.`, {
    kinds,
  })
}

/** Says that tasks wait for a key, at most once a minute of each kind, with how many times one was put off since. */
export function createKeyAlarm(log: Log, clock: Clock): (task: Claimed, error: KeyMissing) => void {
  const alarms = new Map<string, { at: number; tasks: number }>()
  return ({ kind, id }, error) => {
    const now = clock.now()
    const alarm = alarms.get(kind) ?? { at: Number.NEGATIVE_INFINITY, tasks: 0 }
    alarms.set(kind, alarm)
    alarm.tasks++
    if (now - alarm.at < ALARM_MS) return
    const { tasks } = alarm
    log.error('Tasks wait for a key that this worker lacks; each is looked at again within five minutes', {
      ...{ kind, task_id: id, tasks, reason: error.message },
    })
    alarms.set(kind, { at: now, tasks: 0 })
  }
}
