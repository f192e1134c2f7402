import { implement } from '#shared/worker/implement.ts'
import { chat } from '../chat/contract.ts'
import { conversation } from './contract.ts'

/** Turns at the end that answer without asking on. */
const CLOSING_TURNS = 2

/** Each turn answers the one before it, and asks a follow-up, until the talk draws to its end. */
export default implement(conversation, async ({ topic, n, api_key, model }, ctx) => {
  const lines = [`What is interesting about ${topic}?`]
  for (let turn = 0; turn < n; turn++) {
    const asks = turn < n - CLOSING_TURNS
    const manner = asks
      ? 'Answer in one short sentence, and then ask one short follow-up question.'
      : 'Answer in one short sentence. Do not ask anything.'
    const question = `We are talking about ${topic}. ${manner}\n\n${lines.at(-1)}`
    const answer = await ctx.call(chat, { question, api_key, ...(model === undefined ? {} : { model }) })
    // A line each, whatever the model made of it.
    lines.push(answer.replace(/\s+/g, ' ').trim())
    ctx.progress(turn + 1, n)
  }
  return lines.join('\n')
})
