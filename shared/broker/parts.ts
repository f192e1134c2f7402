import type { Broker, Stored } from './broker.ts'

/**
 * What is stored of these, in order, in parts of about a megabyte: whoever looks at many tasks holds no more than
 * that in memory.
 */
export async function* inParts(
  broker: Pick<Broker, 'get'>,
  ids: readonly string[],
  options: { endedOnly?: boolean } = {},
): AsyncGenerator<(Stored | null)[]> {
  let most = ids.length
  for (let from = 0; from < ids.length; ) {
    const asked = ids.slice(from, from + most)
    const found = await broker.get(asked, { ...options, some: true })
    yield found
    from += found.length
    if (found.length < asked.length) most = found.length + 1
  }
}
