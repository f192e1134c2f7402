/** The runtimes that the services run on. What differs between them is in this folder alone. */
export type Runtime = 'bun' | 'deno' | 'node'

/** The one that runs this process. */
export const runtime: Runtime = 'Bun' in globalThis ? 'bun' : 'Deno' in globalThis ? 'deno' : 'node'
