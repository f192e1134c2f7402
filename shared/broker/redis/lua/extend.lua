-- ARGV: end of the leases, name of the new ones, number of tasks; for each: id, token, kind, progress as done/total or ''.
-- Returns for each 0 when it is held, 1 when it is lost, 2 when its task is unknown; or its final record. At least for
-- the first, and for no more when the values that tell are large.
local ends, name, tasks, ids, reply = arg(), arg(), {}, {}, {}
for i = 1, number() do
  tasks[i] = { id = arg(), token = arg(), kind = number(), progress = arg() }
  ids[i] = tasks[i].id
end
local set, flushSet, setOf = batch('HSET')
local byKind, moving, telling, ended = {}, setOf(LIVE), { ids = {}, at = {} }, { ids = {}, at = {} }
local function addTo(list, id, at) list.ids[#list.ids + 1], list.at[#list.at + 1] = id, at end
for i, text in ipairs(fetch(LIVE, holdFields(ids))) do
  local task, h = tasks[i], holderOf(text)
  if h and h.token == task.token then
    reply[i] = 0
    local kind = byKind[task.kind] or { ids = {}, holders = {} }
    byKind[task.kind] = kind
    kind.ids[#kind.ids + 1], kind.holders[#kind.holders + 1] = task.id, h
    if task.progress ~= '' then addTo(telling, task.id, i) end
  elseif call('HEXISTS', LIVE, task.id) == 1 then reply[i] = 1
  else
    reply[i] = 2
    addTo(ended, task.id, i)
  end
end
mayGrow()
for kind, held in pairs(byKind) do
  local lease = leaseName(name, kind, held.ids)
  -- A call that is sent again finds them moved.
  if lease ~= '=' and call('HEXISTS', LEASES, lease) == 1 then call('ZADD', of(kind, RUNNING), ends, lease)
  else
    for i, id in ipairs(held.ids) do
      local h, n = held.holders[i], #moving + 1
      moving[n], moving[n + 1] = holdField(id), holderText(h.token, lease, h.started, h.past)
      if h.lease ~= '=' or lease ~= '=' then takeOff(kind, id, h) end
    end
    flushTakenOff()
    startLease(kind, lease, ends, held.ids)
  end
end
-- The answer ends before the first whose values were too much for this call.
local function cut(list, values)
  if #values == #list.ids then return end
  for i = #reply, list.at[#values + 1], -1 do reply[i] = nil end
end
local values, bytes = fetchSome(LIVE, telling.ids)
for i, value in ipairs(values) do
  local t, progress = value and split(value), tasks[telling.at[i]].progress
  if t and t.progress ~= progress then
    t.progress = progress
    set(LIVE, telling.ids[i], join(t))
  end
end
flushSet()
local records = fetchSome(TASKS, ended.ids, bytes)
for i, record in ipairs(records) do reply[ended.at[i]] = record or 2 end
cut(telling, values)
cut(ended, records)
return reply
