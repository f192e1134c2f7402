/**
 * Where the last whole command or transaction ends in Redis's append-only file, at or before `size`. Redis up to 7.0 keeps the
 * beginning of a transaction that was torn in its middle, and runs it at its next start but one: that is cut off here, as `redis-check-aof --fix` does.
 */
export function wholeUntil(journal: Buffer, size: number): number {
  let at = 0
  let whole = 0
  let inTransaction = false
  for (;;) {
    const words = line(journal, at)
    if (!words) return whole
    at = words.next
    let name = ''
    for (let i = 0; i < words.number; i++) {
      const length = line(journal, at)
      if (!length) return whole
      at = length.next + length.number + 2
      if (i === 0) name = journal.toString('latin1', length.next, length.next + length.number).toUpperCase()
    }
    if (at > size) return whole
    if (name === 'MULTI') inTransaction = true
    else if (name === 'EXEC') inTransaction = false
    if (!inTransaction) whole = at
  }
}

/** Reads `*3` or `$12`. */
function line(journal: Buffer, at: number): { number: number; next: number } | null {
  const end = journal.indexOf('\r\n', at, 'latin1')
  return end < 0 ? null : { number: Number(journal.toString('latin1', at + 1, end)), next: end + 2 }
}
