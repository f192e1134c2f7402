import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { engines, packageManager } from '../package.json'

const node = Bun.which('node')
if (!node) console.warn('The launcher is not tested: there is no Node here.')

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'tasker-launch-'))
  cpSync(join(import.meta.dir, 'launch.mjs'), join(dir, 'services/launch.mjs'))
  writeFileSync(join(dir, 'package.json'), JSON.stringify({ engines, packageManager }))
})
afterEach(() => rmSync(dir, { recursive: true }))

/** Puts a program on the launcher's PATH that notes how it was called, and goes on as the script says. */
function program(name: string, script: string): void {
  mkdirSync(join(dir, 'bin'), { recursive: true })
  const path = join(dir, 'bin', name)
  writeFileSync(path, `#!/bin/sh\n[ "$1" = --version ] || echo "${name} $*" >> '${dir}/calls'\n${script}\n`)
  chmodSync(path, 0o755)
}

const text = (stream: ReadableStream) => new Response(stream).text()

function launch(...args: string[]) {
  return Bun.spawn([String(node), ...args], {
    cwd: tmpdir(),
    env: { PATH: `${dir}/bin:/usr/bin:/bin`, HOME: dir },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    detached: true,
  })
}

async function launched(...args: string[]) {
  const run = launch(...args)
  const [code, stdout, stderr] = await Promise.all([run.exited, text(run.stdout), text(run.stderr)])
  const calls = await Bun.file(join(dir, 'calls'))
    .text()
    .catch(() => '')
  return { code, stdout, stderr: stderr.trim().split('\n'), calls: calls.trim().split('\n') }
}

const newBun = 'case "$1" in --version) echo 1.10.0;; install) ;; *) echo told; exit 7;; esac'
const oldBun = 'echo 1.3.9'

describe.skipIf(!node)('the launcher', () => {
  test('starts with the Bun on PATH, without development dependencies, and ends as the child does', async () => {
    program('bun', newBun)
    const { code, stdout, stderr, calls } = await launched(`${dir}/services/launch.mjs`, 'start', '--flag')
    expect({ code, stdout, stderr }).toEqual({ code: 7, stdout: 'told\n', stderr: [''] })
    expect(calls).toEqual(['bun install --frozen-lockfile --production', 'bun --no-orphans services/dev.ts --flag'])
  })

  test('tests with all dependencies, through the script of package.json', async () => {
    program('bun', newBun)
    const { calls } = await launched(`${dir}/services/launch.mjs`, 'test')
    expect(calls).toEqual(['bun install --frozen-lockfile', 'bun --no-orphans run --silent check'])
  })

  test('gets the pinned Bun from npm when the one on PATH is too old, once', async () => {
    program('bun', oldBun)
    program('got', newBun)
    const modules = '$3/node_modules'
    const unpack = `require('fs').copyFileSync('${dir}/bin/got', __dirname + '/../.bin/bun')`
    program('npm', `mkdir -p "${modules}/bun" "${modules}/.bin"; echo "${unpack}" > "${modules}/bun/install.js"`)
    const first = await launched(`${dir}/services/launch.mjs`, 'start')
    expect(first.stderr).toEqual([expect.stringContaining(packageManager)])
    const [npm, ...rest] = first.calls
    expect(npm).toMatch(/^npm install --prefix \S+ .*--no-package-lock --ignore-scripts .*/)
    expect(npm).toEndWith(` ${packageManager}`)
    expect(rest).toEqual(['got install --frozen-lockfile --production', 'got --no-orphans services/dev.ts'])
    const second = await launched(`${dir}/services/launch.mjs`, 'start')
    expect(second.stderr).toEqual([''])
    expect(second.calls.filter((call) => call.startsWith('npm'))).toHaveLength(1)
  })

  test('says in one line what to do when npm cannot get Bun', async () => {
    program('bun', oldBun)
    program('npm', 'echo "npm error code ENOTFOUND" >&2; exit 1')
    const { code, stderr } = await launched(`${dir}/services/launch.mjs`, 'start')
    expect(code).toBe(1)
    expect(stderr.slice(1)).toEqual([expect.stringMatching(/^tasker: .*ENOTFOUND.* online .*install Bun >=1\.4/)])
  })

  test('says in one line what to do when the dependencies cannot be installed', async () => {
    program('bun', 'case "$1" in --version) echo 1.4.0;; *) echo "error: no route" >&2; exit 1;; esac')
    const { code, stderr } = await launched(`${dir}/services/launch.mjs`, 'start')
    expect({ code, stderr }).toEqual({ code: 1, stderr: [expect.stringMatching(/^tasker: .*no route.*online/)] })
  })

  test('refuses a Node that is too old', async () => {
    const pretend = 'data:text/javascript,Object.defineProperty(process,"versions",{value:{node:"18.20.0"}})'
    const { code, stderr } = await launched('--import', pretend, `${dir}/services/launch.mjs`, 'start')
    expect({ code, stderr }).toEqual({ code: 1, stderr: [expect.stringMatching(/Node 18.20.0 is too old/)] })
  })

  test.each([
    ['SIGINT', 'group'],
    ['SIGTERM', 'group'],
    ['SIGINT', 'launcher'],
    ['SIGTERM', 'launcher'],
  ] as const)('%s to the %s reaches the child once, and the child decides', async (signal, to) => {
    program('bun', `case "$1" in --version) echo 1.4.0;; install) ;; *) shift; exec '${process.execPath}' "$@";; esac`)
    // A second signal would end it with 1, as it ends Tasker.
    writeFileSync(
      join(dir, 'services/dev.ts'),
      `let heard = 0
       const stop = () => {
         console.log('heard')
         if (++heard > 1) process.exit(1)
         setTimeout(() => process.exit(0), 200)
       }
       for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, stop)
       setInterval(() => {}, 1000)
       console.log('up')`,
    )
    const run = launch(`${dir}/services/launch.mjs`, 'start')
    for await (const chunk of run.stdout) {
      const told = new TextDecoder().decode(chunk)
      if (told.includes('up')) process.kill(to === 'group' ? -run.pid : run.pid, signal)
      // npm tells the launcher what the launcher has already heard.
      if (told.includes('heard')) process.kill(run.pid, signal)
    }
    expect(await run.exited).toBe(0)
  })
})
