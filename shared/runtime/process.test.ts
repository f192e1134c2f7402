import { expect, test } from 'bun:test'
import { join } from 'node:path'

const module = join(import.meta.dir, 'process.ts')

function run(main: string) {
  const script = `import { aborted, runMain } from ${JSON.stringify(module)}
    await runMain('trial', async (signal) => { ${main} })
    console.log('after')`
  return Bun.spawn([process.execPath, '-e', script], { stdout: 'pipe', stderr: 'pipe' })
}

/** Gives what it writes, a piece at each call. */
function output(child: ReturnType<typeof run>): () => Promise<string> {
  const reader = child.stdout.getReader()
  return async () => new TextDecoder().decode((await reader.read()).value)
}

test.each(['SIGTERM', 'SIGINT'] as const)('%s lets the entry point end by itself', async (name) => {
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

test('what is thrown is one line on stderr, without a stack', async () => {
  const child = run(`throw new Error('no luck\\nwith details')`)
  expect(await child.exited).toBe(1)
  expect(await new Response(child.stderr).text()).toBe('trial: no luck\n')
})
