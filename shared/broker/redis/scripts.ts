import claim from './lua/claim.lua' with { type: 'text' }
import common from './lua/common.lua' with { type: 'text' }
import enqueue from './lua/enqueue.lua' with { type: 'text' }
import extend from './lua/extend.lua' with { type: 'text' }
import get from './lua/get.lua' with { type: 'text' }
import kinds from './lua/kinds.lua' with { type: 'text' }
import list from './lua/list.lua' with { type: 'text' }
import open from './lua/open.lua' with { type: 'text' }
import ping from './lua/ping.lua' with { type: 'text' }
import remove from './lua/remove.lua' with { type: 'text' }
import reserve from './lua/reserve.lua' with { type: 'text' }
import retry from './lua/retry.lua' with { type: 'text' }
import settle from './lua/settle.lua' with { type: 'text' }
import stats from './lua/stats.lua' with { type: 'text' }
import sweep from './lua/sweep.lua' with { type: 'text' }

/** A Lua script: `name` for messages, `text` to send once, and its hash to call it by. */
export interface Script {
  readonly name: string
  readonly text: string
  /** Whether it changes what must not be lost. */
  readonly writes: boolean
  /** SHA-1 of the text, with what a client puts before it. */
  sha(prefix?: string): Promise<string>
}

const WRITING = ['enqueue', 'settle', 'retry', 'remove']

/** The scripts, one for each method of the port that changes or reads the store. `settle` ends with a claim, so it carries that too. */
export const scripts = {
  enqueue: script('enqueue', common, enqueue),
  claim: script('claim', common, claim, 'local reply = claim()\nsendWakes()\nreturn reply'),
  settle: script('settle', common, claim, settle),
  extend: script('extend', common, extend),
  get: script('get', common, get),
  remove: script('remove', common, remove),
  reserve: script('reserve', common, reserve),
  retry: script('retry', common, retry),
  list: script('list', common, list),
  stats: script('stats', common, stats),
  sweep: script('sweep', common, sweep),
  kinds: script('kinds', kinds),
  open: script('open', open),
  ping: script('ping', ping),
}

function script(name: string, ...parts: string[]): Script {
  const text = parts.join('\n')
  const hashes = new Map<string, Promise<string>>()
  return {
    name,
    text,
    writes: WRITING.includes(name),
    sha(prefix = '') {
      const hash = hashes.get(prefix) ?? sha1(prefix + text)
      hashes.set(prefix, hash)
      return hash
    },
  }
}

async function sha1(text: string): Promise<string> {
  const bytes = await crypto.subtle.digest('SHA-1', new TextEncoder().encode(text))
  return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
