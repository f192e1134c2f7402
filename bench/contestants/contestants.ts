import type { Open } from './contestant.ts'

export interface Entry {
  readonly name: string
  readonly title: string
  /** Peers are compared with; the others always run. */
  readonly peer: boolean
  readonly store: 'Redis' | 'file'
  /** Loads its module in a process of its own. A contestant in Python is a script instead. */
  readonly load?: () => Promise<{ open: Open }>
  readonly python?: { readonly script: string; readonly modules: readonly string[]; readonly debian: string }
  /** Runs a fraction of the tasks: rates are compared, and nobody waits for minutes. */
  readonly share?: number
  /** Cannot be measured without its producer. */
  readonly endToEndOnly?: boolean
  /** Runs only when it is named: it needs a Cluster, whose six nodes would take time from all others. */
  readonly onCluster?: boolean
}

export const contestants: readonly Entry[] = [
  {
    ...{ name: 'tasker-redis', title: 'Tasker on Redis', peer: false, store: 'Redis' },
    load: () => import('./tasker-redis.ts'),
  },
  {
    ...{ name: 'tasker-sqlite', title: 'Tasker on SQLite', peer: false, store: 'file' },
    load: () => import('./tasker-sqlite.ts'),
  },
  {
    ...{ name: 'tasker-rest', title: 'Tasker over REST', peer: false, store: 'Redis' },
    load: () => import('./tasker-rest.ts'),
  },
  {
    ...{ name: 'tasker-cluster', title: 'Tasker on a Cluster', peer: true, store: 'Redis' },
    ...{ endToEndOnly: true, onCluster: true },
    load: () => import('./tasker-cluster.ts'),
  },
  { ...{ name: 'bullmq', title: 'BullMQ 6.7', peer: true, store: 'Redis' }, load: () => import('./bullmq.ts') },
  { ...{ name: 'bee-queue', title: 'bee-queue', peer: true, store: 'Redis' }, load: () => import('./bee-queue.ts') },
  {
    ...{ name: 'bunqueue', title: 'bunqueue on disk', peer: true, store: 'file', share: 0.2 },
    load: () => import('./bunqueue.ts'),
  },
  {
    ...{ name: 'job-queue', title: '@platformatic/job-queue', peer: true, store: 'Redis', share: 0.2 },
    load: () => import('./job-queue.ts'),
  },
  {
    ...{ name: 'celery', title: 'Celery', peer: true, store: 'Redis', share: 0.05, endToEndOnly: true },
    python: { script: 'celery_sum.py', modules: ['celery', 'redis'], debian: 'python3-celery python3-redis' },
  },
  {
    ...{ name: 'rq', title: 'RQ', peer: true, store: 'Redis', share: 0.02, endToEndOnly: true },
    python: { script: 'rq_sum.py', modules: ['rq', 'redis'], debian: 'python3-rq python3-redis' },
  },
  { ...{ name: 'limit', title: 'the limit', peer: false, store: 'Redis' }, load: () => import('./limit.ts') },
]

export function entryOf(name: string): Entry {
  const entry = contestants.find((one) => one.name === name)
  if (!entry) throw new Error(`There is no contestant ${name}: ${contestants.map((one) => one.name).join(', ')}.`)
  return entry
}
