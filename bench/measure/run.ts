import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Entry } from '../contestants/contestants.ts'
import type { Snapshot } from './redis.ts'

/** The bench's own folder. */
export const BENCH = new URL('..', import.meta.url).pathname

/** What one run gave. */
export interface Run {
  readonly name: string
  readonly n: number
  readonly ms: number
  readonly cpuMs: number
  readonly rssBytes: number
  /** Results in the store at the end. */
  readonly stored: number
  readonly values: Readonly<Record<string, number>>
  /** The store's counters at each mark. */
  readonly marks: Readonly<Record<string, Mark>>
  /** And after each process of the run has ended. */
  readonly ends: readonly Mark[]
}

export interface Mark extends Snapshot {
  /** Of the REST endpoint: commands as they are billed, and HTTP requests. */
  readonly bill: { readonly commands: number; readonly requests: number } | null
}

/** Longer than any run may take. */
const TIMEOUT_MS = 15 * 60_000

/** Runs `bun contestant.ts` (or a script in Python) in a process of its own. Rejects with what it printed when it fails. */
export async function runProcess(options: {
  entry: Entry
  body: string
  n: number
  env: Record<string, string>
  /** Reads the counters when the process asks. */
  mark: () => Promise<Mark>
}): Promise<Omit<Run, 'ends'>> {
  const { entry, body, n, env, mark } = options
  const marks: Record<string, Mark> = {}
  const script = entry.python && join(BENCH, 'contestants', entry.python.script)
  const command = script
    ? [findPython(entry.python?.modules ?? []) ?? 'python3', script, body, String(n)]
    : [process.execPath, join(BENCH, 'contestant.ts'), entry.name, body, String(n)]
  if (script) marks['before'] = await mark()
  const child = Bun.spawn(command, {
    cwd: BENCH,
    env: {
      PATH: process.env['PATH'] ?? '',
      HOME: process.env['HOME'] ?? '',
      PYTHONDONTWRITEBYTECODE: '1',
      ...env,
    },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    timeout: TIMEOUT_MS,
    ...(script
      ? {}
      : {
          ipc(message: { mark: string }) {
            void mark().then((taken) => {
              marks[message.mark] = taken
              child.send('go')
            })
          },
        }),
  })
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (script) marks['after'] = await mark()
  const line = out.split('\n').findLast((text) => text.startsWith('{'))
  if (code !== 0 || !line) throw new Error(`${entry.name} ${body} ended with ${code}: ${`${out}\n${err}`.slice(-800)}`)
  return { ...(JSON.parse(line) as Omit<Run, 'marks' | 'ends'>), marks }
}

/** A Python that has the modules: the system's, where Debian's packages go, before any other. */
export function findPython(modules: readonly string[]): string | null {
  const candidates = ['/usr/bin/python3', Bun.which('python3')].filter((path) => path !== null)
  const imports = `import ${modules.join(', ')}`
  return candidates.find((path) => Bun.spawnSync([path, '-c', imports], { stderr: 'ignore' }).success) ?? null
}

/** A new folder on disk for one run, and how to be rid of it. Beside the results: the system's folder for such files may be in memory. */
export function runFolder(): { path: string; remove(): void } {
  const path = mkdtempSync(join(BENCH, 'results', 'run-'))
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) }
}
