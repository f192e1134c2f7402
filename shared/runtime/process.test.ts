import { expect, test } from 'bun:test'
import { join } from 'node:path'

const module = join(import.meta.dir, 'process.ts')

function run(main: string, before: string[] = []) {
  const script = `import { aborted, runMain } from ${JSON.stringify(module)}
    await runMain('trial', async (signal) => { ${main} })
    console.log('after')`
  return Bun.spawn([...before, process.execPath, '-e', script], { stdout: 'pipe', stderr: 'pipe' })
}

/** Gives what it writes, a piece at each call. */
function output(child: ReturnType<typeof run>): () => Promise<string> {
  const reader = child.stdout.getReader()
  return async () => new TextDecoder().decode((await reader.read()).value)
}

test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('%s lets the entry point end by itself', async (name) => {
  const child = run(`console.log('up'); await aborted(signal); await aborted(signal); console.log('down')`)
  const next = output(child)
  expect(await next()).toBe('up\n')
  child.kill(name)
  expect(await child.exited).toBe(0)
  expect((await next()) + (await next())).toBe('down\nafter\n')
})

test('a second signal ends the process at once', async () => {
  const child = run(`console.log('up'); setInterval(() => {}, 1000)
    signal.addEventListener('abort', () => console.log('stopping')); await new Promise(() => {})`)
  const next = output(child)
  expect(await next()).toBe('up\n')
  child.kill('SIGTERM')
  expect(await next()).toBe('stopping\n')
  child.kill('SIGTERM')
  expect(await child.exited).toBe(1)
})

test('a terminal that hangs up is no request to end at once, however often it says so', async () => {
  const child = run(`process.on('SIGHUP', () => console.log(signal.aborted ? 'stopping' : 'running'))
    process.on('SIGUSR2', () => process.exit(0))
    console.log('up'); setInterval(() => {}, 1000); await new Promise(() => {})`)
  const next = output(child)
  expect(await next()).toBe('up\n')
  for (const _ of [1, 2]) {
    child.kill('SIGHUP')
    expect(await next()).toBe('stopping\n')
  }
  child.kill('SIGUSR2')
  expect(await child.exited).toBe(0)
})

test.skipIf(process.platform !== 'linux')(
  'what was started with nohup goes on when the terminal hangs up',
  async () => {
    const child = run(`console.log('up'); await aborted(signal)`, ['nohup'])
    expect(await output(child)()).toBe('up\n')
    // The first bit of those that are ignored.
    expect(await Bun.file(`/proc/${child.pid}/status`).text()).toMatch(/^SigIgn:\s*\w+[13579bdf]$/m)
    child.kill('SIGTERM')
    expect(await child.exited).toBe(0)
  },
)

test('what is thrown is one line on stderr, without a stack', async () => {
  const child = run(`throw new Error('no luck\\nwith details')`)
  expect(await child.exited).toBe(1)
  expect(await new Response(child.stderr).text()).toBe('trial: no luck\n')
})
