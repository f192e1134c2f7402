/** Numbers that follow from a seed: the same seed gives the same run. */
export interface Random {
  /** In [0, 1). */
  next(): number
  /** A whole number from `least` to `most`. */
  whole(least: number, most: number): number
  /** One of them, each as likely as its weight. */
  weighted<T extends string>(weights: Readonly<Record<T, number>>): T
  pick<T>(items: readonly T[]): T
  /** A generator of its own, so that what is drawn here does not move what is drawn there. */
  fork(name: string): Random
}

/** Mulberry32. */
export function createRandom(seed: number): Random {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  const random: Random = {
    next,
    whole: (least, most) => least + Math.floor(next() * (most - least + 1)),
    weighted<T extends string>(weights: Readonly<Record<T, number>>): T {
      const names = Object.keys(weights) as T[]
      let left = next() * names.reduce((sum, name) => sum + weights[name], 0)
      for (const name of names) {
        left -= weights[name]
        if (left < 0) return name
      }
      return random.pick(names)
    },
    pick<T>(items: readonly T[]): T {
      return items[Math.floor(next() * items.length)] as T
    },
    fork: (name) => createRandom(Number(BigInt.asUintN(32, BigInt(Bun.hash(`${seed} ${name}`))))),
  }
  return random
}
