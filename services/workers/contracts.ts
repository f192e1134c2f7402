/** The registry: every kind's contract, a line each. */
import type { Contract } from '#shared/task/define.ts'
import { chat } from './chat/contract.ts'
import { conversation } from './conversation/contract.ts'
import { sequence } from './sequence/contract.ts'
import { sum } from './sum/contract.ts'

export const contracts: Readonly<Record<string, Contract>> = Object.fromEntries(
  [sum, chat, sequence, conversation].map((contract) => [contract.kind, contract as Contract]),
)
