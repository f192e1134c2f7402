-- ARGV: nothing more.
-- Returns for each kind: length of the three queues, size of the six sets, broken, succeeded and failed within 60 s, dropped, then the envelope at the front of each queue.
local reply = {}
for kind = 1, #kinds do
  local row = {}
  for priority = 1, 3 do row[priority] = call('LLEN', of(kind, priority)) end
  for key = RUNNING, CANCELLED do row[key] = call('ZCARD', of(kind, key)) end
  row[BROKEN] = call('LLEN', of(kind, BROKEN))
  for _, key in ipairs({ SUCCEEDED, FAILED }) do row[#row + 1] = call('ZCOUNT', of(kind, key), now - 60000, '+inf') end
  row[#row + 1] = call('GET', of(kind, DROPPED))
  for priority = 1, 3 do row[#row + 1] = call('LINDEX', of(kind, priority), -1) end
  reply[kind] = row
end
return reply
