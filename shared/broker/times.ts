import type { Broker, ClaimRequest, Ended, Outcome } from './broker.ts'

/** Refuses, before anything is sent, times that no store can order: one of them would stop a script half-way, with the rest of its batch. */
export function requireTimes(broker: Broker): Broker {
  return {
    ...broker,
    async enqueue(tasks) {
      for (const task of tasks) requireTime('enqueue', task.dueAt)
      return broker.enqueue(tasks)
    },
    async claim(request) {
      requireLease('claim', request)
      return broker.claim(request)
    },
    async settle(outcomes, next) {
      for (const outcome of outcomes) requireOutcome(outcome)
      if (next) requireLease('settle', next)
      return broker.settle(outcomes, next)
    },
    async extend(leases, leaseMs) {
      requireTime('extend', leaseMs)
      return broker.extend(leases, leaseMs)
    },
    async cancel(tasks) {
      for (const { endedAt, expiresAt } of tasks) {
        requireTime('cancel', endedAt)
        requireTime('cancel', expiresAt)
      }
      return broker.cancel(tasks)
    },
    async remove(tasks) {
      for (const { ended } of tasks) requireEnded('remove', ended)
      return broker.remove(tasks)
    },
    async reserve(tasks, leaseMs) {
      requireTime('reserve', leaseMs)
      return broker.reserve(tasks, leaseMs)
    },
    async retry(tasks) {
      for (const { ended } of tasks) requireEnded('retry', ended)
      return broker.retry(tasks)
    },
  }
}

function requireOutcome(outcome: Outcome): void {
  switch (outcome.type) {
    case 'end':
    case 'adopt':
      requireTime('settle', outcome.endedAt)
      requireTime('settle', outcome.expiresAt)
      break
    case 'retry':
      requireTime('settle', outcome.at)
      break
    case 'call':
      requireTime('settle', outcome.wakeAt)
      for (const child of outcome.children) requireTime('settle', child.dueAt)
      break
  }
}

const requireLease = (operation: string, { leaseMs }: ClaimRequest) => requireTime(operation, leaseMs)

function requireEnded(operation: string, ended: Ended | null | undefined): void {
  requireTime(operation, ended?.at)
  requireTime(operation, ended?.expiresAt)
}

function requireTime(operation: string, ms: number | null | undefined): void {
  if (ms === null || ms === undefined || Number.isFinite(ms)) return
  throw new TypeError(`${operation} was given ${ms} for a time: it must be a finite number of milliseconds.`)
}
