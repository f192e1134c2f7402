import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { LLMock } from '@copilotkit/aimock'
import { partitionOf } from '#shared/broker/redis/redis.ts'
import { loadConfig } from '#shared/runtime/config.ts'
import { endProcesses, freePort, startProcess } from '#shared/test/process.ts'

const root = new URL('..', import.meta.url).pathname
const read = (file: string) => readFileSync(join(root, file), 'utf8')
const readme = read('README.md')

const temp = mkdtempSync(join(tmpdir(), 'tasker-readme-'))
const model = new LLMock({ port: 0 })
beforeAll(async () => {
  await model.start()
  model.onMessage(/./, { content: 'Honey never spoils.' })
})
afterAll(async () => {
  await endProcesses()
  await model.stop()
  rmSync(temp, { recursive: true })
})

interface Block {
  language: string
  code: string
}

function blocksOf(markdown: string): Block[] {
  return Array.from(markdown.matchAll(/^```(\w+)\n(.*?)^```/gms), ([, language = '', code = '']) => ({
    language,
    code,
  }))
}

/** The rows of the first table after a heading, as cells. */
function tableAfter(markdown: string, heading: string): string[][] {
  const [, section = ''] = markdown.split(`\n${heading}\n`)
  const [table = ''] = /(^\|.*\n)+/m.exec(section) ?? []
  const [, , ...rows] = table.trim().split('\n')
  return rows.map((row) =>
    row
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  )
}

/** Starts everything in one process, from the given copy of the project. */
async function startTasker(project: string) {
  const [creator, manager] = [await freePort(), await freePort()]
  const tasker = startProcess(join(project, 'services/dev.ts'), {
    ...{ CREATOR_PORT: String(creator), MANAGER_PORT: String(manager), LOG_LEVEL: 'info' },
    ...{ TASKER_DB: join(mkdtempSync(join(temp, 'db-')), 'tasker.db'), OPENAI_BASE_URL: `${model.url}/v1` },
  })
  await tasker.prints('Working.')
  async function result(id: string): Promise<unknown> {
    const response = await fetch(`http://localhost:${manager}/task/${id}?wait=20`)
    return ((await response.json()) as { result: unknown }).result
  }
  return { creator, manager, result }
}

/** Runs a command of the shell; gives what it printed. */
async function shell(command: string, env: Record<string, string>): Promise<string> {
  const run = Bun.spawn(['sh', '-c', command], { env: { PATH: process.env['PATH'] ?? '', ...env }, stdin: 'ignore' })
  const printed = await new Response(run.stdout).text()
  expect(await run.exited).toBe(0)
  return printed
}

/** An answer without what is different each time. */
function steady(answer: string): unknown {
  const text = answer
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}/g, 'ID')
    .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, 'TIME')
  return JSON.parse(text)
}

const curl = Bun.which('curl')
if (!curl) console.log('Skipped: the curl examples of README.md, as there is no curl here.')

test.skipIf(!curl)(
  'the curl examples of the README give the answers that it shows',
  async () => {
    const { creator, manager, result } = await startTasker(root)
    const examples = blocksOf(readme).flatMap(({ language, code }, at, all) => {
      if (language !== 'bash' || !code.startsWith('curl ')) return []
      const next = all[at + 1]
      expect(next?.language).toBe('json')
      return [{ command: code, answer: next?.code ?? '' }]
    })
    expect(examples.length).toBe(6)
    // The status, without a change to the commands.
    await Bun.write(join(temp, '.curlrc'), 'write-out = "\\n%{http_code}"\n')
    const ids: string[] = []
    for (const { command, answer } of examples) {
      const sum = ids[0] ?? ''
      if (command.includes('TASK_ID') && !command.includes('DELETE')) expect(await result(sum)).toBe(12)
      const real = command
        .replace('localhost:5000', `localhost:${creator}`)
        .replace('localhost:5001', `localhost:${manager}`)
        .replace('TASK_ID', sum)
      expect(real).not.toMatch(/:500\d|TASK_ID/)
      const [, body = '', status] = /^(.*)\n(\d+)$/s.exec(await shell(real, { CURL_HOME: temp })) ?? []
      expect(status).toBe(command.includes('POST') ? '201' : '200')
      expect(steady(body)).toEqual(steady(answer))
      ids.push((JSON.parse(body) as { task_id: string }).task_id)
    }
    const [sum = '', chat = '', sequence = '', conversation = ''] = ids
    expect((await fetch(`http://localhost:${manager}/task/${sum}`)).status).toBe(404)
    expect(await result(chat)).toBe('Honey never spoils.')
    expect(await result(sequence)).toBe(15)
    expect(await result(conversation)).toBe(
      ['What is interesting about AI?', ...new Array(4).fill('Honey never spoils.')].join('\n'),
    )
  },
  60_000,
)

test('the worker of the README type-checks and runs', async () => {
  const project = join(temp, 'project')
  mkdirSync(project)
  for (const file of ['services', 'shared', 'package.json', 'tsconfig.json']) {
    cpSync(join(root, file), join(project, file), { recursive: true, filter: (path) => !path.endsWith('.test.ts') })
  }
  symlinkSync(join(root, 'node_modules'), join(project, 'node_modules'))
  const files = Array.from(readme.matchAll(/^`(services\/workers\/\S+\.ts)`[^\n]*:\n\n```ts\n(.*?)^```/gms))
  expect(files.length).toBe(3)
  for (const [, path = '', code = ''] of files) await Bun.write(join(project, path), code)
  for (const { code } of blocksOf(readme).filter(({ language }) => language === 'diff')) {
    for (const part of code.split(/^--- /m).slice(1)) {
      const [path = '', ...lines] = part.trimEnd().split('\n')
      const file = join(project, path)
      await Bun.write(file, patched(readFileSync(file, 'utf8'), lines))
    }
  }
  const [checked, entry] = ['readme.tsconfig.json', 'services/workers/implementations.ts']
  const included = [...files.map(([, path = '']) => path), entry, 'shared/broker/text.d.ts']
  await Bun.write(join(project, checked), JSON.stringify({ extends: './tsconfig.json', include: included }))
  const types = Bun.spawnSync([process.execPath, 'run', '--bun', 'tsc', '-p', checked], { cwd: project })
  expect(types.stdout.toString()).toBe('')

  const { creator, result } = await startTasker(project)
  const [body = ''] = /(?<=`POST \/invoice` with `).*?(?=`)/.exec(readme) ?? []
  const created = await fetch(`http://localhost:${creator}/invoice`, {
    ...{ method: 'POST', headers: { 'Content-Type': 'application/json' }, body },
  })
  const { task_id } = (await created.json()) as { task_id: string }
  expect(await result(task_id)).toEqual({ number: expect.stringMatching(/^[0-9a-f-]{36}$/), total: 6 })
}, 60_000)

/** Applies the lines of a diff; `@@` parts them where lines between are left out. */
function patched(text: string, lines: readonly string[]): string {
  return lines
    .join('\n')
    .split(/^@@$/m)
    .reduce((before, hunk) => {
      const side = (sign: string) =>
        hunk
          .split('\n')
          .filter((line) => line.startsWith(' ') || line.startsWith(sign))
          .map((line) => line.slice(1))
          .join('\n')
      expect(before).toContain(side('-'))
      return before.replace(side('-'), () => side('+'))
    }, text)
}

describe('the settings of the README', () => {
  const rows = tableAfter(readme, '## Settings')

  test('are exactly those that are read', () => {
    const [, schema = ''] =
      /^const environment = z\.object\(\{\n(.*?)^\}\)/ms.exec(read('shared/runtime/config.ts')) ?? []
    const known = Array.from(schema.matchAll(/^ {2}([A-Z_]+):/gm), ([, name]) => `\`${name}\``)
    expect(known.length).toBeGreaterThan(0)
    expect(rows.map(([name]) => name ?? '').sort()).toEqual(known.sort())
  })

  test('have the defaults that it names', () => {
    const defaults = rows.flatMap(([name = '', value = '']) => {
      const [given] = /(?<=^`).*?(?=`)/.exec(value) ?? []
      return given === undefined ? [] : [[name.replaceAll('`', ''), given] as const]
    })
    expect(defaults.length).toBeGreaterThan(0)
    for (const [name, value] of defaults) expect(loadConfig({ [name]: value })).toEqual(loadConfig({}))
  })
})

test('every relative link of the documents leads to a file', () => {
  const documents = ['README.md', ...readdirSync(join(root, 'docs')).map((file) => `docs/${file}`)]
  for (const document of documents.filter((file) => file.endsWith('.md'))) {
    for (const [, target = ''] of read(document).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue
      const [path = '', anchor] = target.split('#')
      const file = path === '' ? document : join(dirname(document), path)
      expect(`${document}: ${target} ${existsSync(join(root, file))}`).toBe(`${document}: ${target} true`)
      if (anchor === undefined) continue
      const anchors = Array.from(read(file).matchAll(/^#+ (.*)$/gm), ([, heading = '']) => anchorOf(heading))
      expect(anchors).toContain(anchor)
    }
  }
})

/** As GitHub makes them. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\w\- ]/g, '')
    .replaceAll(' ', '-')
}

test('the protocol names the partitions that the code computes', () => {
  const rows = tableAfter(read('docs/protocol.md'), '## Partitions')
  expect(rows.length).toBeGreaterThan(0)
  for (const [id = '', partitions, partition] of rows) {
    expect(partitionOf(id.replaceAll('`', ''), Number(partitions))).toBe(Number(partition))
  }
})

test('the dependencies are those of package.json, with their licences', () => {
  const { dependencies, devDependencies } = JSON.parse(read('package.json')) as Record<string, Record<string, string>>
  const document = read('docs/dependencies.md')
  for (const [heading, packages = {}] of [
    ['## At run time', dependencies],
    ['## For development', devDependencies],
  ] as const) {
    const rows = tableAfter(document, heading).map(([name = '', , licence]) => [name.replaceAll('`', ''), licence])
    const known = Object.keys(packages).map((name) => {
      const { license } = JSON.parse(read(`node_modules/${name}/package.json`)) as { license: string }
      return [name, license]
    })
    expect(rows.sort()).toEqual(known.sort())
  }
})
