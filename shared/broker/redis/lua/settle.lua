-- ARGV: number of outcomes; for each: "<type> <kind> <parent's kind or 0> <more> <token>", id, parent's id or '', then by type (more: what)
--   end, cancel (<final state's key number>,<expiry or ->): record     adopt (the same): nothing
--   retry (<when due>): nothing     release (-): nothing
--   call (<calls>,<steps>,<park, 1 or 0>,<wake at or ->): number of records, (id, record) of each, the new tasks
-- then 1 and the claim that follows, or 0.
-- Returns { for each outcome the length of the task's history, or -1 when refused; the claim's reply or false }.
local outcomes, ids = {}, {}
for i = 1, number() do
  local type, kind, parentKind, more, token = string.match(arg(), '^(%a+) (%d+) (%d+) (%S+) (.*)$')
  local o = { type = type, token = token, kind = tonumber(kind), parentKind = tonumber(parentKind), id = arg(), parent = arg() }
  if type == 'end' or type == 'cancel' or type == 'adopt' then
    local state, expiry = string.match(more, '^(%d+),(%S+)$')
    o.state, o.expiry = tonumber(state), expiry
    if type ~= 'adopt' then o.record = arg() end
  elseif type == 'retry' then o.due = more
  elseif type == 'call' then
    local calls, steps, park, wakeAt = string.match(more, '^(%d+),(%d+),(%d),(%S+)$')
    o.calls, o.steps, o.park, o.wake, o.records = tonumber(calls), tonumber(steps), park == '1', tonumber(wakeAt), {}
    for j = 1, 2 * number() do o.records[j] = arg() end
    o.children = newTasks()
  end
  outcomes[i], ids[i] = o, o.id
end

local set, flushSet = batch('HSET')
local forget, flushForget = batch('HDEL')
local index, flushIndex = batch('ZADD')
local unindex, flushUnindex = batch('ZREM')
local codes, released, ended, roots = {}, {}, {}, {}
local HELD = { queued = 0, running = RUNNING, delayed = DELAYED, waiting = WAITING }

local function finish(o, t)
  if o.record then set(TASKS, o.id, o.record) end
  forget(LIVE, o.id)
  if t.calls > 0 then forget(PENDING, o.id) end
  if t.state ~= 'queued' then unindex(of(o.kind, HELD[t.state]), o.id)
  elseif o.type == 'cancel' then call('INCR', of(o.kind, DROPPED)) end
  index(of(o.kind, o.state), now, o.id)
  if o.parent == '' then
    roots[#roots + 1] = o.id
    if o.expiry ~= '-' then index(EXPIRY, o.expiry, o.id) end
  else
    local parents = ended[o.parentKind] or {}
    ended[o.parentKind], parents[o.parent] = parents, (parents[o.parent] or 0) + 1
  end
end

local function callChildren(o, t)
  if #o.records > 0 then call('HSET', TASKS, unpack(o.records)) end
  local added = add(o.children, true)
  local pending = (added > 0 or o.park) and call('HINCRBY', PENDING, o.id, added) or 0
  t.id, t.calls, t.steps = o.id, o.calls, o.steps
  if o.park then
    call('ZREM', of(o.kind, RUNNING), o.id)
    if pending == 0 then call('HDEL', PENDING, o.id) end
    if pending == 0 and not o.wake then return requeue(o.kind, { t }) end
    t.state, t.token = 'waiting', '-'
    call('ZADD', of(o.kind, WAITING), o.wake or '+inf', o.id)
    if o.wake then wake(o.kind, o.wake) end
  end
  call('HSET', LIVE, o.id, join(t))
end

for i, value in ipairs(fetch(LIVE, ids)) do
  local o, t = outcomes[i], value and split(value)
  local free = o.type == 'cancel' or o.type == 'adopt'
  if not t or not (free or (t.state == 'running' and t.token == o.token)) then
    codes[i] = -1
  else
    codes[i] = t.calls
    if o.state then finish(o, t)
    elseif o.type == 'retry' then
      t.state, t.token, t.attempts, t.started = 'delayed', '-', t.attempts + 1, '0'
      set(LIVE, o.id, join(t))
      unindex(of(o.kind, RUNNING), o.id)
      index(of(o.kind, DELAYED), o.due, o.id)
      wake(o.kind, tonumber(o.due))
    elseif o.type == 'release' then
      unindex(of(o.kind, RUNNING), o.id)
      released[o.kind] = released[o.kind] or {}
      t.id = o.id
      table.insert(released[o.kind], t)
    else callChildren(o, t) end
  end
end
flushSet(); flushForget(); flushIndex(); flushUnindex()
for kind, tasks in pairs(released) do requeue(kind, tasks) end
childrenEnded(ended)
local reply = arg() == '1' and claim() or false
sendWakes()
if #roots > 0 then publish('tasks:events', { type = 'end', ids = roots }) end
return { codes, reply }
