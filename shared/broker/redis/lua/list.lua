-- ARGV: state's key number (2 for queued); where to begin: an offset, or for final states the time of the last one before (or +inf) and how many of that time were there; limit. One kind.
-- Returns ids; for queued tasks their envelopes, at least one and no more when they are large, and then '' if there
-- are more of them; for final states their entries (see common.lua), each followed by its time, until there are
-- enough.
local state, from, skip, limit, reply = number(), arg(), number(), number(), {}
if FINAL[state] then
  local offset, count = 0, 0
  while count < limit do
    local some = call('ZRANGE', of(1, state), from, '-inf', 'BYSCORE', 'REV', 'LIMIT', offset, 20, 'WITHSCORES')
    for i = 1, #some, 2 do
      local more = #idsOf(some[i])
      if some[i + 1] == from then
        local before = math.min(skip, more)
        skip, more = skip - before, more - before
      end
      count = count + more
      reply[#reply + 1], reply[#reply + 2] = some[i], some[i + 1]
    end
    if #some < 40 then break end
    offset = offset + 20
  end
  return reply
end
local offset = tonumber(from)
if state == RUNNING then
  local leases = call('ZRANGE', of(1, RUNNING), 0, -1, 'REV')
  for i, text in ipairs(fetch(LEASES, leases)) do
    local ids = text and idsOf(text) or { leases[i] }
    for j, holder in ipairs(fetch(LIVE, holdFields(ids))) do
      -- In a store of an earlier version nobody is told to hold a task that is running.
      if isHeldUnder(holderOf(holder), leases[i], ids[j]) or not text and not holder then
        offset = offset - 1
        if offset < 0 then reply[#reply + 1] = ids[j] end
        if #reply == limit then return reply end
      end
    end
  end
  return reply
end
if state ~= NORMAL then return call('ZRANGE', of(1, state), offset, offset + limit - 1, 'REV') end
local bytes = 0
for priority = 1, 3 do
  local length = call('LLEN', of(1, priority))
  while offset < length and #reply < limit do
    local piece = pieceOf(limit - #reply, #reply, bytes, 4)
    for _, envelope in ipairs(call('LRANGE', of(1, priority), offset, offset + piece - 1)) do
      bytes = bytes + #envelope
      if #reply > 0 and bytes > ENOUGH then
        reply[#reply + 1] = ''
        return reply
      end
      reply[#reply + 1] = envelope
      offset = offset + 1
    end
  end
  offset = math.max(0, offset - length)
end
return reply
