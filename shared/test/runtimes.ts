import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** A runtime that programs of this project are run on. */
export interface TestRuntime {
  readonly name: 'Bun' | 'Deno' | 'Node'
  /** What stands before the file; null where the runtime is missing. */
  readonly command: readonly string[] | null
  /** What a skipped test says after its name. */
  readonly missing: string
}

/** The oldest that imports scripts as text. */
const NODE_VERSION = '24.21.0'
const modules = join(import.meta.dir, '../../node_modules')

export const runtimes: readonly TestRuntime[] = [
  { name: 'Bun', command: [process.execPath], missing: '' },
  { name: 'Deno', command: deno(), missing: ' (skipped: node_modules has no Deno for this platform)' },
  { name: 'Node', command: node(), missing: ` (skipped: there is no Node ${NODE_VERSION}, and npm did not give it)` },
]

/** The program itself: the package's command starts it as a child, which a signal to the command would leave behind. */
function deno(): string[] | null {
  const [path] = new Bun.Glob('@deno/*/deno').scanSync({ cwd: modules, absolute: true, followSymlinks: true })
  return path === undefined ? null : [path, 'run', '-A']
}

/** That of the machine when it is new enough; else one from npm, got once. */
function node(): string[] | null {
  const name = `node-${process.platform}-${process.arch}`
  const folder = join(modules, '.cache/node')
  const got = join(folder, 'node_modules', name, 'bin/node')
  const path =
    [Bun.which('node'), got].find((path) => path && isNewEnough(path)) ?? (fetchNode(name, folder) ? got : null)
  return path ? [path, '--disable-warning=ExperimentalWarning', '--experimental-import-text'] : null
}

function isNewEnough(path: string): boolean {
  if (!existsSync(path)) return false
  const version = Bun.spawnSync([path, '--version']).stdout.toString().trim()
  return Bun.semver.satisfies(version.replace('v', ''), `>=${NODE_VERSION}`)
}

function fetchNode(name: string, folder: string): boolean {
  console.error(`Getting Node ${NODE_VERSION} from npm, once: the tests run on it too.`)
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{}')
  const add = [process.execPath, 'add', '--ignore-scripts', '--exact', `${name}@${NODE_VERSION}`]
  return Bun.spawnSync(add, { cwd: folder, stdout: 'ignore', stderr: 'ignore' }).success
}
