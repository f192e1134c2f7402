/** What Redis says no with: its message is the text of the error reply, word for word. */
export class ReplyError extends Error {
  override readonly name = 'ReplyError'
}

/** A reply as RESP2 shapes it. A string holds the digits of an integer, a Buffer the bytes of any string, and Error an error within an array. */
export type Reply = Buffer | string | null | Error | readonly Reply[]

/** How the caller wants strings. */
export type Encoding = 'text' | 'base64'

/** The JSON of one answer: `{"result":…}`, or `{"error":"…"}` for an error reply. */
export function answerJson(reply: Reply, encoding: Encoding): string {
  if (reply instanceof Error) return `{"error":${JSON.stringify(reply.message)}}`
  // Clients take a status OK as it is, and decode every other string.
  if (Buffer.isBuffer(reply) && isOk(reply)) return '{"result":"OK"}'
  return `{"result":${toJson(reply, encoding)}}`
}

// Written by hand: JSON.stringify would round integers beyond 2^53.
function toJson(reply: Reply, encoding: Encoding): string {
  if (reply === null) return 'null'
  if (typeof reply === 'string') return reply
  if (reply instanceof Error) return toJson(Buffer.from(reply.message), encoding)
  if (Buffer.isBuffer(reply)) {
    return encoding === 'base64' ? `"${reply.toString('base64')}"` : JSON.stringify(reply.toString('utf8'))
  }
  return `[${reply.map((entry) => toJson(entry, encoding)).join(',')}]`
}

/** The reply in RESP2, as Redis would send it, but that the strings OK and PONG are always statuses and every other string is a bulk string. */
export function toResp2(reply: Reply): Buffer {
  const parts: Buffer[] = []
  write(reply, parts)
  return Buffer.concat(parts)
}

function write(reply: Reply, parts: Buffer[]): void {
  if (reply === null) parts.push(Buffer.from('$-1\r\n'))
  else if (typeof reply === 'string') parts.push(Buffer.from(`:${reply}\r\n`))
  else if (reply instanceof Error) parts.push(Buffer.from(`-${reply.message}\r\n`))
  else if (Buffer.isBuffer(reply)) {
    if (isOk(reply) || reply.equals(PONG)) parts.push(Buffer.from(`+${reply}\r\n`))
    else parts.push(Buffer.from(`$${reply.length}\r\n`), reply, Buffer.from('\r\n'))
  } else {
    parts.push(Buffer.from(`*${reply.length}\r\n`))
    for (const entry of reply) write(entry, parts)
  }
}

const PONG = Buffer.from('PONG')

function isOk(bytes: Buffer): boolean {
  return bytes.length === 2 && bytes[0] === 0x4f && bytes[1] === 0x4b
}
