-- ARGV: end of the lease, number of leases; for each: id, token, kind, progress as done/total or ''.
-- Returns for each 0 when it is held, 1 when it is lost, 2 when its task is unknown; or its final record. At least for
-- the first, and for no more when the values that tell are large.
local deadline, leases, ids, ended, endedAt, reply = arg(), {}, {}, {}, {}, {}
for i = 1, number() do
  leases[i] = { id = arg(), token = arg(), kind = number(), progress = arg() }
  ids[i] = leases[i].id
end
local lease, flushLeases = batch('ZADD')
local set, flushLive = batch('HSET')
local values, bytes = fetchSome(LIVE, ids)
for i, value in ipairs(values) do
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
local records = fetchSome(TASKS, ended, bytes)
for j, at in ipairs(endedAt) do
  if records[j] == nil then
    for i = #values, at, -1 do reply[i] = nil end
    break
  end
  reply[at] = records[j] or 2
end
return reply
