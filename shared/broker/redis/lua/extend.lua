-- ARGV: end of the lease, number of leases; for each: id, token, kind, progress as done/total or ''.
-- Returns for each 0 when it is held, 1 when it is lost, 2 when its task is unknown; or its final record.
local deadline, leases, ids, ended, endedAt, reply = arg(), {}, {}, {}, {}, {}
for i = 1, number() do
  leases[i] = { id = arg(), token = arg(), kind = number(), progress = arg() }
  ids[i] = leases[i].id
end
local lease, flushLeases = batch('ZADD')
local set, flushLive = batch('HSET')
for i, value in ipairs(fetch(LIVE, ids)) do
  local l, t = leases[i], value and split(value)
  if not t then
    ended[#ended + 1], endedAt[#endedAt + 1] = l.id, i
  elseif t.state == 'running' and t.token == l.token then
    lease(of(l.kind, RUNNING), deadline, l.id)
    if l.progress ~= '' and l.progress ~= t.progress then
      t.progress = l.progress
      set(LIVE, l.id, join(t))
    end
    reply[i] = 0
  else
    reply[i] = 1
  end
end
mayGrow()
flushLeases(); flushLive()
for j, record in ipairs(fetch(TASKS, ended)) do reply[endedAt[j]] = record or 2 end
return reply
