import { expect, test } from 'bun:test'
import { createGroup } from './group.ts'

function gate() {
  const commits: { batch: number[]; resolve: (out: number[]) => void; reject: (error: Error) => void }[] = []
  const commit = (batch: number[]) =>
    new Promise<number[]>((resolve, reject) => {
      commits.push({ batch, resolve, reject })
    })
  return { commits, commit }
}

const settled = async () => {
  for (let i = 0; i < 10; i++) await null
}

test('a lone item goes at once', async () => {
  const { commits, commit } = gate()
  const add = createGroup(commit, { maxBatch: 10 })
  const added = add([1])
  await settled()
  expect(commits.map(({ batch }) => batch)).toEqual([[1]])
  commits[0]?.resolve([10])
  expect(await added).toEqual([10])
})

test('items that come while a commit is under way go together in the next, and each caller gets its own results', async () => {
  const { commits, commit } = gate()
  const add = createGroup(commit, { maxBatch: 10 })
  const first = add([1])
  await settled()
  const others = [add([2]), add([3, 4]), add([5])]
  await settled()
  expect(commits).toHaveLength(1)
  commits[0]?.resolve([10])
  expect(await first).toEqual([10])
  await settled()
  expect(commits[1]?.batch).toEqual([2, 3, 4, 5])
  commits[1]?.resolve([20, 30, 40, 50])
  expect(await Promise.all(others)).toEqual([[20], [30, 40], [50]])
})

test('what is added in one tick goes in one commit', async () => {
  const { commits, commit } = gate()
  const add = createGroup(commit, { maxBatch: 10 })
  void add([1])
  void add([2])
  await settled()
  expect(commits.map(({ batch }) => batch)).toEqual([[1, 2]])
})

test('a commit holds no more than maxBatch, but the items of one call are never parted', async () => {
  const { commits, commit } = gate()
  const add = createGroup(commit, { maxBatch: 3 })
  const all = [add([1, 2]), add([3, 4]), add([5, 6, 7, 8]), add([9])]
  for (let i = 0; i < 4; i++) {
    await settled()
    commits[i]?.resolve(commits[i]?.batch ?? [])
  }
  expect(await Promise.all(all)).toEqual([[1, 2], [3, 4], [5, 6, 7, 8], [9]])
  expect(commits.map(({ batch }) => batch)).toEqual([[1, 2], [3, 4], [5, 6, 7, 8], [9]])
})

test('a failed commit rejects its own items only, and the next goes on', async () => {
  const { commits, commit } = gate()
  const add = createGroup(commit, { maxBatch: 10 })
  const first = add([1])
  await settled()
  const second = add([2])
  commits[0]?.reject(new Error('down'))
  await expect(first).rejects.toThrow('down')
  await settled()
  commits[1]?.resolve([20])
  expect(await second).toEqual([20])
  const third = add([3])
  await settled()
  commits[2]?.resolve([30])
  expect(await third).toEqual([30])
})

test('a commit that throws or gives too few results rejects instead of hanging', async () => {
  const throwing = createGroup<number, number>(
    () => {
      throw new Error('at once')
    },
    { maxBatch: 10 },
  )
  await expect(throwing([1])).rejects.toThrow('at once')
  const short = createGroup<number, number>(async () => [], { maxBatch: 10 })
  await expect(short([1])).rejects.toThrow('A commit of 1 gave 0 results.')
})

test('adding nothing commits nothing', async () => {
  const { commits, commit } = gate()
  expect(await createGroup(commit, { maxBatch: 10 })([])).toEqual([])
  expect(commits).toHaveLength(0)
})

test('a second commit goes beside the first when enough waits, and never a third', async () => {
  const { commits, commit } = gate()
  const add = createGroup(commit, { maxBatch: 10, secondAt: 2 })
  const added = [add([1])]
  await settled()
  added.push(add([2]))
  await settled()
  expect(commits.map(({ batch }) => batch)).toEqual([[1]])
  added.push(add([3]))
  await settled()
  expect(commits.map(({ batch }) => batch)).toEqual([[1], [2, 3]])
  added.push(add([4, 5]))
  await settled()
  expect(commits).toHaveLength(2)
  commits[1]?.resolve([20, 30])
  await settled()
  expect(commits[2]?.batch).toEqual([4, 5])
  commits[2]?.resolve([40, 50])
  commits[0]?.resolve([10])
  expect(await Promise.all(added)).toEqual([[10], [20], [30], [40, 50]])
  const last = add([6])
  await settled()
  expect(commits[3]?.batch).toEqual([6])
  commits[3]?.resolve([60])
  expect(await last).toEqual([60])
})
