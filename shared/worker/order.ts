/** Characters of an order that are kept: it travels with each change of its task. */
const MAX_CHARS = 400_000

/**
 * The order in which the entries of a history complete for their handler. A delivery of the smallest number that is open is implied; any other is written
 * down with its position. So handlers whose entries complete in the order of their numbers keep nothing.
 *
 * As text: `7:12,15-18;30:2` says that deliveries 7 to 11 were those of entries 12, 15, 16, 17 and 18, and delivery 30 that of entry 2.
 */
export class Order {
  readonly #written = new Map<number, number>()
  #text = ''
  /** The range at the end of the text: its first and last entry, and the position after it. */
  #range = { first: 0, last: 0, next: -1 }
  /** How many of the written deliveries the store has. */
  #stored: number
  #deliveries = 0
  #decided = 0
  /** The entry whose delivery was decided last. */
  #last: number | null = null

  /** Goes on from the text of an earlier run. */
  constructor(text: string) {
    for (const part of text === '' ? [] : text.split(';')) {
      const [start, ranges = ''] = part.split(':')
      let position = Number(start)
      for (const range of ranges.split(',')) {
        const [first = 0, last = first] = range.split('-').map(Number)
        for (let entry = first; entry <= last; entry++) this.#write(position++, entry)
      }
      this.#decided = position
    }
    this.#stored = this.#written.size
  }

  get text(): string {
    return this.#text + this.#rangeText()
  }

  /** How many deliveries there were. */
  get deliveries(): number {
    return this.#deliveries
  }

  /** Whether the next delivery is decided already, by an earlier run or by `decide`. */
  get isDecided(): boolean {
    return this.#deliveries < this.#decided
  }

  /** The entry that the next delivery is written down for; undefined when it is implied, or not decided. */
  get written(): number | undefined {
    return this.#written.get(this.#deliveries)
  }

  /** Whether anything was decided that the store does not know. */
  get isUnstored(): boolean {
    return this.#written.size > this.#stored
  }

  /** Whether it has grown beyond what is kept. */
  get isTooLong(): boolean {
    return this.text.length > MAX_CHARS
  }

  /** Decides the delivery after those that are decided. */
  decide(entry: number, implied: boolean): void {
    const position = Math.max(this.#decided, this.#deliveries)
    if (!implied) this.#write(position, entry)
    this.#last = entry
    this.#decided = position + 1
  }

  delivered(): void {
    this.#deliveries++
  }

  /** Writes down the last delivery that was decided, though it is implied: then all that came before it are known to have been. */
  pin(): void {
    const position = this.#decided - 1
    if (this.#last !== null && !this.#written.has(position)) this.#write(position, this.#last)
  }

  /** How many deliveries are written down. */
  get size(): number {
    return this.#written.size
  }

  /** The store has so many of them. */
  stored(size: number): void {
    this.#stored = size
  }

  /** As it was when there had been so many deliveries. */
  before(deliveries: number): string {
    const earlier = new Order('')
    for (const [position, entry] of this.#written) if (position < deliveries) earlier.#write(position, entry)
    return earlier.text
  }

  #write(position: number, entry: number): void {
    this.#written.set(position, entry)
    const range = this.#range
    if (position === range.next && entry === range.last + 1) {
      range.last = entry
      range.next++
      return
    }
    const before = this.text
    const goesOn = position === range.next
    this.#text = goesOn ? `${before},` : `${before === '' ? '' : `${before};`}${position}:`
    this.#range = { first: entry, last: entry, next: position + 1 }
  }

  #rangeText(): string {
    const { first, last, next } = this.#range
    if (next < 0) return ''
    return first === last ? String(first) : `${first}-${last}`
  }
}
