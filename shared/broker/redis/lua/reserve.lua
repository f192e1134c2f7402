-- ARGV: whether the call was sent before (1 or 0); when the reservation ends, which is its token; number of tasks; for each: id, token of before or '-'. No kinds.
-- Returns for each 1 when it is reserved, 0 when it has no final record, is live, or is another's.
local resent, token, ids, before, reply = arg() == '1', arg(), {}, {}, {}
for i = 1, number() do ids[i], before[i] = arg(), tonumber(arg()) end
call('ZREMRANGEBYSCORE', RESERVED, '-inf', now)
local live = fetch(LIVE, ids)
for i, record in ipairs(fetch(TASKS, ids)) do
  local score = call('ZSCORE', RESERVED, ids[i])
  local ends = score and tonumber(score)
  local mine = not ends or ends == before[i] or resent and ends == tonumber(token)
  reply[i] = record and not live[i] and mine and 1 or 0
  if reply[i] == 1 then call('ZADD', RESERVED, token, ids[i]) end
end
return reply
