/** Something that the operator of a Redis should know when a process starts. */
export interface Condition {
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  readonly fields: Record<string, unknown>
}

const OLDEST_MAJOR = 7

/**
 * What a server says of itself that may cost tasks, a line for each, with what to set. `info` is its answer to INFO.
 * What it does not tell is not judged: providers leave fields out.
 */
export function conditionsOf(
  info: string,
  { redis, waitReplicas, failsOver }: { redis: string; waitReplicas: number; failsOver: boolean },
): Condition[] {
  const fields = new Map(info.split(/\r?\n/).map((line) => line.split(/:(.*)/s, 2) as [string, string]))
  const conditions: Condition[] = []
  const tell = (level: Condition['level'], message: string, more: Record<string, unknown>) =>
    void conditions.push({ level, message, fields: { redis, ...more } })
  // A provider whose server is its own tells the version that it resembles.
  const version = fields.has('upstash_version') ? undefined : fields.get('redis_version')
  if (version !== undefined && Number.parseInt(version, 10) < OLDEST_MAJOR)
    tell('error', 'Redis is too old: Tasker needs 7.0 or newer, and cannot run tasks on this one.', { version })
  const policy = fields.get('maxmemory_policy')
  if (policy !== undefined && policy !== 'noeviction')
    tell('warn', 'Redis may evict tasks and results when it is full: set maxmemory-policy noeviction.', { policy })
  if (fields.get('aof_enabled') === '0')
    tell('warn', 'Redis keeps no journal and loses tasks when it restarts: set appendonly yes.', { appendonly: 'no' })
  const replicas = Number(fields.get('connected_slaves') ?? 0)
  if ((failsOver || waitReplicas > 0) && replicas > waitReplicas) {
    const message = 'A fail-over may lose acknowledged tasks: set TASKER_WAIT_REPLICAS to the number of replicas.'
    tell('warn', message, { replicas, TASKER_WAIT_REPLICAS: waitReplicas })
  }
  return conditions
}

/** What is said where INFO is not allowed. */
export function unchecked(redis: string): Condition {
  const message = 'Redis does not tell how it is set up (INFO): whether it may evict or forget could not be checked.'
  return { level: 'info', message, fields: { redis } }
}
