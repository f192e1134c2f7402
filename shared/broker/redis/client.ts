import type { Subscription } from '../broker.ts'
import type { Condition } from './condition.ts'
import type { Script } from './scripts.ts'

/** All that the Redis broker needs of a connection, over TCP or REST. */
export interface RedisClient {
  /** Whether its provider bills for each command. */
  readonly isBilled: boolean
  /**
   * Runs a script once; never sends it twice by itself.
   *
   * @throws AnswerLost when no answer came: the script may have run.
   * @throws StoreUnavailable when the store refused: the script did not run to its end.
   */
  eval(script: Script, keys: string[], args: (string | number)[]): Promise<unknown>
  /**
   * Asks the servers once whether they can be used, and gives what their operator should know.
   *
   * @throws AnswerLost, StoreUnavailable saying where Redis was looked for, and why that did not work.
   */
  check(): Promise<Condition[]>
  publish(channel: string, message: string): Promise<void>
  /** Calls `on` for each message; and `onGap` when messages may have been missed (a new connection). */
  subscribe(channel: string, on: (message: string) => void, onGap: () => void): Promise<Subscription>
  close(): Promise<void>
}

/** No answer came: the store may or may not have acted. The call can be sent again, marked as such. */
export class AnswerLost extends Error {
  override readonly name = 'AnswerLost'
}

/** Whether a URL names the nodes of a Cluster: several. Sentinels are several too, of one primary. */
export function isCluster(url: string): boolean {
  return /^rediss?:.*,/.test(url)
}
