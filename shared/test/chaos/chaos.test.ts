import { afterEach, expect, test } from 'bun:test'
import { endProcesses } from '../process.ts'
import { canCluster } from '../redis-cluster.ts'
import { FAULTS, runChaos } from './chaos.ts'

afterEach(endProcesses)

// The short form of `bun run chaos`: real processes, a fixed seed, a few seconds of faults.
const short = { seed: 7, seconds: 5, leaseMs: 1_500, faultEveryMs: 250 }

test('a fleet on Redis keeps every promise while processes, connections, clocks and Redis itself fail', async () => {
  const report = await runChaos({
    ...short,
    ...{ store: 'always', tasks: 800, roles: ['creator', 'manager', 'worker'] },
    restRoles: ['creator', 'worker'],
  })
  expect(report.violations).toEqual([])
  expect(report).toMatchObject({ lost: 0, takenBack: 0, crashes: report.faults['redis kill'] ?? 0 })
  expect(report.crashes).toBeGreaterThan(0)
  expect(Object.keys(report.faults).toSorted()).toEqual(FAULTS.always.toSorted())
  expect(report.acknowledged).toBeGreaterThan(200)
  expect(report.ended).toBeGreaterThan(report.acknowledged)
  expect(report.leasesChecked).toBeGreaterThan(report.acknowledged / 2)
  expect(report.seen).toBeGreaterThan(30)
  expect(report.overRest.acknowledged).toBeGreaterThan(0)
  expect(report.overRest.ended).toBeGreaterThan(0)
}, 120_000)

test('processes on SQLite keep every promise while they are killed again and again', async () => {
  const report = await runChaos({ ...short, seconds: 4, store: 'sqlite', tasks: 600, roles: ['all', 'worker'] })
  expect(report.violations).toEqual([])
  expect(Object.keys(report.faults).toSorted()).toEqual(FAULTS.sqlite.toSorted())
  expect(report).toMatchObject({ lost: 0, takenBack: 0 })
  expect(report.acknowledged).toBeGreaterThan(50)
  expect(report.ended).toBeGreaterThan(report.acknowledged)
  expect(report.leasesChecked).toBeGreaterThan(report.acknowledged / 2)
}, 60_000)

test.skipIf(!canCluster)(
  'a fleet on a Cluster keeps every promise while primaries die, change their roles and hand on slots',
  async () => {
    const report = await runChaos({
      ...short,
      ...{ seconds: 4, store: 'cluster', partitions: 6, tasks: 400, roles: ['creator', 'manager', 'worker'] },
    })
    expect(report.violations).toEqual([])
    expect(report.lost).toBe(0)
    expect(report.crashes).toBeGreaterThan(0)
    expect(Object.keys(report.faults).toSorted()).toEqual(FAULTS.cluster.toSorted())
    expect(report.acknowledged).toBeGreaterThan(50)
    expect(report.ended).toBeGreaterThan(report.acknowledged)
    expect(report.leasesChecked).toBeGreaterThan(report.acknowledged / 2)
  },
  120_000,
)
