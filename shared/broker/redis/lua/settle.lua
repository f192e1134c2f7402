-- ARGV: number of outcomes; for each: "<type> <kind> <parent's kind or 0> <more> <token>", id, parent's id if there is one, then by type (more: what)
--   end, cancel (<final state's key number>,<expiry or ->): record     adopt (the same): nothing
--   retry (<when due>): nothing     release (-): nothing
--   call (<calls>,<steps>,<park, 1 or 0>,<wake at or ->): number of records, (id, record) of each, the new tasks
-- then 1 and the claim that follows, or 0.
-- Returns { for each outcome the length of the task's history, or -1 when refused; the claim's reply or false }.
-- Outcomes of one batch mostly begin alike: each beginning is read once.
local heads = {}
local function readHead(text)
  local type, kind, parentKind, more, token = string.match(text, '^(%a+) (%d+) (%d+) (%S+) (.*)$')
  local head = { type = type, kind = tonumber(kind), parentKind = tonumber(parentKind), held = 'running ' .. token .. ' ' }
  if type == 'end' or type == 'cancel' or type == 'adopt' then
    local state, expiry = string.match(more, '^(%d+),(%S+)$')
    head.final, head.expiry = of(head.kind, tonumber(state)), expiry ~= '-' and expiry
    head.free = type ~= 'end'
  elseif type == 'retry' then head.due = more
  elseif type == 'call' then
    local calls, steps, park, wakeAt = string.match(more, '^(%d+),(%d+),(%d),(%S+)$')
    head.calls, head.steps, head.park, head.wake = tonumber(calls), tonumber(steps), park == '1', tonumber(wakeAt)
  end
  heads[text] = head
  return head
end

local outcomes, ids = {}, {}
for i = 1, number() do
  local text = arg()
  local head = heads[text] or readHead(text)
  local o = { head = head, id = arg(), parent = head.parentKind > 0 and arg() }
  if head.final and head.type ~= 'adopt' then o.record = arg()
  elseif head.type == 'call' then
    o.records = {}
    for j = 1, 2 * number() do o.records[j] = arg() end
    o.children = newTasks()
  end
  outcomes[i], ids[i] = o, o.id
end

local set, flushSet = batch('HSET')
local forget, flushForget = batch('HDEL')
local index, flushIndex = batch('ZADD')
local unindex, flushUnindex = batch('ZREM')
local codes, calling, released, ended, roots, expiring = {}, {}, {}, {}, {}, {}
local HELD = { queued = 0, running = RUNNING, delayed = DELAYED, waiting = WAITING }

local function finish(o, head, state, calls)
  if o.record then set(TASKS, o.id, o.record) end
  forget(LIVE, o.id)
  if calls ~= '0' then forget(PENDING, o.id) end
  if state ~= 'queued' then unindex(of(head.kind, HELD[state]), o.id)
  elseif head.type == 'cancel' then call('INCR', of(head.kind, DROPPED)) end
  index(head.final, nowText, o.id)
  if not o.parent then
    roots[#roots + 1] = o.id
    if head.expiry then
      local together = expiring[head.expiry] or {}
      expiring[head.expiry] = together
      together[#together + 1] = o.id
    end
  else
    local parents = ended[head.parentKind] or {}
    ended[head.parentKind], parents[o.parent] = parents, (parents[o.parent] or 0) + 1
  end
end

local function callChildren(o, head, t)
  if #o.records > 0 then call('HSET', TASKS, unpack(o.records)) end
  local added = add(o.children, true)
  local pending = (added > 0 or head.park) and call('HINCRBY', PENDING, o.id, added) or 0
  t.id, t.calls, t.steps = o.id, head.calls, head.steps
  if head.park then
    call('ZREM', of(head.kind, RUNNING), o.id)
    if pending == 0 then call('HDEL', PENDING, o.id) end
    if pending == 0 and not head.wake then return requeue(head.kind, { t }) end
    t.state, t.token = 'waiting', '-'
    call('ZADD', of(head.kind, WAITING), head.wake or '+inf', o.id)
    if head.wake then wake(head.kind, head.wake) end
  end
  call('HSET', LIVE, o.id, join(t))
end

for i, value in ipairs(fetch(LIVE, ids)) do
  local o, head, state, calls = outcomes[i], outcomes[i].head, nil, nil
  if value then
    local held = head.held
    if string.sub(value, 1, #held) == held then state, calls = 'running', string.match(value, '^%d+ %d+ (%d+)', #held + 1)
    elseif head.free then state, calls = string.match(value, '^(%a+) %S+ %d+ %d+ (%d+)') end
  end
  if not state then
    codes[i] = -1
  elseif head.final then
    finish(o, head, state, calls)
    codes[i] = tonumber(calls)
  else
    codes[i] = 0
    local t = split(value)
    if head.type == 'call' then calling[#calling + 1] = { o, head, t }
    else
      unindex(of(head.kind, RUNNING), o.id)
      if head.type == 'retry' then
        t.state, t.token, t.attempts, t.started = 'delayed', '-', t.attempts + 1, '0'
        set(LIVE, o.id, join(t))
        index(of(head.kind, DELAYED), head.due, o.id)
        wake(head.kind, tonumber(head.due))
      else
        t.id = o.id
        released[head.kind] = released[head.kind] or {}
        table.insert(released[head.kind], t)
      end
    end
  end
end
-- Roots that expire at once share an entry: less memory, and no search for a place for each.
for time, together in pairs(expiring) do
  for i = 1, #together, 100 do index(EXPIRY, time, table.concat(together, '\n', i, math.min(i + 99, #together))) end
end
-- What frees memory comes first: a script whose first write does so is not refused when Redis is full.
flushForget(); flushUnindex(); flushSet(); flushIndex()
for _, c in ipairs(calling) do callChildren(unpack(c)) end
for kind, tasks in pairs(released) do requeue(kind, tasks) end
childrenEnded(ended)
local reply = arg() == '1' and claim() or false
sendWakes()
if #roots > 0 then publish('tasks:events', { type = 'end', ids = roots }) end
return { codes, reply }
