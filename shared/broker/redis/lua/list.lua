-- ARGV: state's key number (2 for queued), offset, limit. One kind.
-- Returns ids; for queued tasks their envelopes.
local state, offset, limit, reply = number(), number(), number(), {}
if state ~= NORMAL then return call('ZRANGE', of(1, state), offset, offset + limit - 1, 'REV') end
for priority = 1, 3 do
  local length = call('LLEN', of(1, priority))
  if offset < length and #reply < limit then
    for _, envelope in ipairs(call('LRANGE', of(1, priority), offset, offset + limit - #reply - 1)) do reply[#reply + 1] = envelope end
  end
  offset = math.max(0, offset - length)
end
return reply
