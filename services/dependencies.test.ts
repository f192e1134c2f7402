import { expect, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

interface Package {
  name: string
  license?: string
  dependencies?: Record<string, string>
  optionalDependencies?: Record<string, string>
  scripts?: Record<string, string>
}

const root = join(import.meta.dir, '..')
const read = (folder: string) => JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Package
const [, tree = ''] = readFileSync(join(root, 'docs/dependencies.md'), 'utf8').split('## The whole tree')

/** Where a package finds another one, as runtimes look for it; null when it is not installed, as it may be for another platform. */
function find(name: string, from: string): string | null {
  for (let folder = from; folder.startsWith(root); folder = dirname(folder)) {
    const candidate = join(folder, 'node_modules', name)
    if (existsSync(join(candidate, 'package.json'))) return candidate
  }
  return null
}

/** The folders of all packages that these need, themselves included. */
function closure(names: readonly string[]): string[] {
  const folders = new Set<string>()
  const visit = (name: string, from: string) => {
    const folder = find(name, from)
    if (folder === null || folders.has(folder)) return
    folders.add(folder)
    const { dependencies = {}, optionalDependencies = {} } = read(folder)
    for (const needed of Object.keys({ ...dependencies, ...optionalDependencies })) visit(needed, folder)
  }
  for (const name of names) visit(name, root)
  return [...folders]
}

const hasInstallScript = ({ scripts = {} }: Package) =>
  ['preinstall', 'install', 'postinstall'].some((name) => scripts[name] !== undefined)

const production = closure(Object.keys(read(root).dependencies ?? {})).map(read)

test('every package at run time has a licence that the document allows', () => {
  const [, list = ''] = /has one of these licences: (.*?)\./.exec(tree.replaceAll('2.0', '2_0')) ?? []
  const allowed = list.replaceAll('2_0', '2.0').split(', ')
  expect(allowed).toContain('MIT')
  expect(production.length).toBeGreaterThan(8)
  const others = production.filter(({ license = 'none' }) => !allowed.includes(license))
  expect(others.map(({ name, license }) => `${name}: ${license}`)).toEqual([])
})

test('no package at run time runs a script when it is installed', () => {
  expect(production.filter(hasInstallScript).map(({ name }) => name)).toEqual([])
})

test('of all that is installed, only the packages that the document names have an install script', () => {
  const named = Array.from(tree.matchAll(/^\| `(.*?)` \|/gm), ([, name = '']) => name)
  const manifests = new Bun.Glob('node_modules/**/package.json').scanSync({ cwd: root, dot: true })
  const withScript = new Set<string>()
  for (const path of manifests) {
    // A manifest elsewhere in a package is a part of its sources.
    if (!/node_modules\/(@[^/]+\/)?[^/]+\/package\.json$/.test(path)) continue
    // What the launcher fetched to run on is no dependency of the project.
    if (path.startsWith('node_modules/.cache/')) continue
    const manifest = read(join(root, dirname(path)))
    if (hasInstallScript(manifest)) withScript.add(manifest.name)
  }
  expect([...withScript].toSorted()).toEqual(named.toSorted())
})
