// `npm start` and `npm test`: plain JavaScript, because on a new machine Node runs it before Bun is there.
import { spawn, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { delimiter, dirname, isAbsolute, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const commands = {
  start: { install: ['--production'], run: ['--no-orphans', 'services/dev.ts'] },
  test: { install: [], run: ['--no-orphans', 'run', '--silent', 'check'] },
}

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const cache = join(root, 'node_modules/.cache/bun')
const fetchedBun = join(cache, 'node_modules/.bin/bun')
process.chdir(root)
const { engines, packageManager } = JSON.parse(readFileSync('package.json', 'utf8'))
const [name, ...args] = process.argv.slice(2)
const command = commands[name] ?? fail(`usage: launch.mjs ${Object.keys(commands).join('|')}`)
if (!satisfies(process.versions.node, engines.node))
  fail(`Node ${process.versions.node} is too old: install Node ${engines.node}, or Bun ${engines.bun}.`)

const bun = findBun() ?? fetchBun()
const installed = quietly(bun, ['install', '--frozen-lockfile', ...command.install])
if (installed.error)
  fail(`could not install what bun.lock names (${installed.error}). Are you online? Then run it again.`)
handOver(bun, [...command.run, ...args])

function findBun() {
  const candidates = [process.versions.bun && process.execPath, 'bun', join(root, 'node_modules/.bin/bun'), fetchedBun]
  return candidates.find((path) => path && satisfies(quietly(path, ['--version']).output, engines.bun))
}

function fetchBun() {
  console.error(`Tasker runs on Bun: getting ${packageManager} from npm, once.`)
  const { npm_execpath: npmPath } = process.env
  const [npm, ...npmCli] = npmPath?.endsWith('npm-cli.js') ? [process.execPath, npmPath] : ['npm']
  const target = ['--prefix', cache, '--no-save', '--no-package-lock']
  // npm may hold install scripts back until a person approves them: this package's one script is then run by name.
  const quiet = ['--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']
  const got = quietly(npm, [...npmCli, 'install', ...target, ...quiet, packageManager])
  const unpacked = got.error ? got : quietly(process.execPath, [join(cache, 'node_modules/bun/install.js')])
  const reason = unpacked.error ?? 'it does not run here'
  return findBun() ?? fail(`could not get Bun (${reason}). Go online and run it again, or install Bun ${engines.bun}.`)
}

function satisfies(version, range) {
  const [major, minor] = version.split('.').map(Number)
  const [minMajor, minMinor = 0] = range.replace('>=', '').split('.').map(Number)
  return major > minMajor || (major === minMajor && minor >= minMinor)
}

function quietly(file, args) {
  const { error, status, stdout, stderr } = spawnSync(file, args, { encoding: 'utf8' })
  if (error || status !== 0) {
    const lines = `${stderr ?? ''}\n${stdout ?? ''}`.split('\n')
    const told = lines.find((line) => /\berror\b/i.test(line)) ?? error?.message ?? `${file} exited with ${status}`
    return { output: '', error: told.trim() }
  }
  return { output: stdout.trim() }
}

function handOver(bun, args) {
  // The scripts that Bun runs say `bun` as well.
  const path = isAbsolute(bun) ? [dirname(bun), process.env.PATH] : [process.env.PATH]
  const env = { ...process.env, PATH: path.join(delimiter) }
  // The child must hear a signal once: a second one means "at once". A terminal tells the whole process group; so may
  // whoever starts us without one, and npm repeats what it gets. So: with a terminal Ctrl-C is left to it, else the
  // child has a group of its own, and repeats are swallowed.
  const terminal = process.stdin.isTTY
  const child = spawn(bun, args, { stdio: 'inherit', env, detached: !terminal })
  const heardMs = {}
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      const repeated = Date.now() - (heardMs[signal] ?? 0) < 500
      heardMs[signal] = Date.now()
      if (!repeated && !(terminal && signal !== 'SIGTERM')) child.kill(signal)
    })
  }
  child.on('error', (error) => fail(`could not run Bun (${error.message}).`))
  child.on('exit', (code, signal) => process.exit(code ?? 128 + constants.signals[signal]))
}

function fail(message) {
  console.error(`tasker: ${message}`)
  process.exit(1)
}
