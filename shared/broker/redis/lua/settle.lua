-- ARGV: number of outcomes; for each: "<type> <kind> <parent> <more> <token>", id, parent's id if there is one, then by type (more: what). <parent> is its kind,
-- or 0, and after a colon the group that the parent awaits the task in beside others: "one" for the task alone.
--   end, cancel, adopt (<final state's key number>,<when it ended>,<expiry or ->): record
--   retry (<when due>): envelope     release (-): nothing
--   call (<calls>,<steps>,<park, 1 or 0>,<wake at or ->,<order, or nothing>): number of records, (id, record) of each, the new tasks; to park: how many
--     children it awaits alone, or - when it awaits all together, and how many groups, and the groups
-- then 1 and the claim that follows, or 0.
-- Returns { for each outcome the length of the task's history, or -1 when refused; the claim's reply or false }.
-- Outcomes of one batch mostly begin alike: each beginning is read once.
local heads = {}
local function readHead(text)
  local type, kind, parentKind, group, more, token = match(text, '^(%a+) (%d+) (%d+):?(%w*) (%S+) (.*)$')
  local head = { type = type, kind = tonumber(kind), parentKind = tonumber(parentKind), group = group, token = token }
  if type == 'end' or type == 'cancel' or type == 'adopt' then
    local state, at, expiry = match(more, '^(%d+),(%S+),(%S+)$')
    head.final, head.at, head.expiry = tonumber(state), at, expiry ~= '-' and expiry
    head.free = type ~= 'end'
  elseif type == 'retry' then head.due = more
  elseif type == 'call' then
    local calls, steps, park, wakeAt, order = match(more, '^(%d+),(%d+),(%d),([^,]+),(%S*)$')
    head.calls, head.steps, head.park, head.wake = tonumber(calls), tonumber(steps), park == '1', tonumber(wakeAt)
    head.order = order ~= '' and ' ' .. order or ''
  end
  heads[text] = head
  return head
end

local outcomes, ids = {}, {}
for i = 1, number() do
  local text = arg()
  local head = heads[text] or readHead(text)
  local o = { head = head, id = arg(), parent = head.parentKind > 0 and arg() }
  if head.final then o.record = arg()
  elseif head.type == 'retry' then o.envelope = arg()
  elseif head.type == 'call' then
    o.records = {}
    for j = 1, 2 * number() do o.records[j] = arg() end
    o.children = newTasks()
    if head.park then
      o.alone, o.groups = number(), {}
      for j = 1, number() do o.groups[j] = arg() end
    end
  end
  outcomes[i], ids[i] = o, o.id
end

-- And so are the lines of their live values.
local lines = {}
local function lineOf(value)
  local text = sub(value, 1, find(value, '\n', 1, true))
  local line = lines[text]
  if not line then
    local state, token, calls = match(text, '^(%a+) (%S+) %d+ %d+ (%d+)')
    line = { state = state, token = token, calls = tonumber(calls) }
    lines[text] = line
  end
  return line
end

local set, flushSet, setOf = batch('HSET')
local forget, flushForget, forgetOf = batch('HDEL')
local index, flushIndex = batch('ZADD')
local unindex, flushUnindex, unindexOf = batch('ZREM')
local codes, calling, released, ended, roots, texts, sets, dropped = {}, {}, {}, {}, {}, {}, {}, {}
local HELD = { delayed = DELAYED, waiting = WAITING }
local records, gone = setOf(TASKS), forgetOf(LIVE)

-- The ids that get one score in one sorted set.
local function together(key, score, head)
  local set = sets[key] or { head = head, scores = {} }
  sets[key] = set
  set.scores[score] = set.scores[score] or {}
  return set.scores[score]
end

local function finish(o, head, line)
  local id = o.id
  local n = #records + 1
  records[n], records[n + 1] = id, o.record
  gone[#gone + 1] = id
  if line.calls > 0 then forget(PENDING, id) end
  -- The lists that all outcomes of one head add to are looked up once.
  head.ended = head.ended or together(of(head.kind, head.final), head.at, head)
  head.ended[#head.ended + 1] = id
  if line.state == 'running' then
    head.leases = head.leases or unindexOf(of(head.kind, RUNNING))
    head.leases[#head.leases + 1] = id
  elseif line.state ~= 'queued' then unindex(of(head.kind, HELD[line.state]), id)
  elseif head.type == 'cancel' then dropped[head.kind] = (dropped[head.kind] or 0) + 1 end
  if not o.parent then
    roots[#roots + 1] = id
    texts[#texts + 1] = o.record
    if head.expiry then
      head.expiring = head.expiring or together(EXPIRY, head.expiry, head)
      head.expiring[#head.expiring + 1] = id
    end
  else
    local parents = ended[head.parentKind] or {}
    ended[head.parentKind] = parents
    local e = parents[o.parent] or { count = 0, groups = {} }
    parents[o.parent] = e
    e.count = e.count + 1
    if head.group == 'one' then e.alone = true
    elseif head.group ~= '' then e.groups[head.group] = (e.groups[head.group] or 0) + 1 end
  end
end

-- Whether something that a task is parked for has ended since it looked: of so many unfinished children.
local function mayGoOn(o, head, pending)
  if not o.alone then return pending == 0 and not head.wake end
  local fields, grouped = {}, 0
  for i, group in ipairs(o.groups) do fields[i] = groupField(o.id, group) end
  for _, left in ipairs(fetch(PENDING, fields)) do
    if not left then return true end
    grouped = grouped + tonumber(left)
  end
  return pending - grouped < o.alone
end

-- Counts the new children of groups that are awaited beside others.
local function countGroups(o)
  local groups = {}
  for _, child in ipairs(o.children) do
    local group = child.created and child.head.group
    if group then groups[group] = (groups[group] or 0) + 1 end
  end
  for group, count in pairs(groups) do call('HINCRBY', PENDING, groupField(o.id, group), count) end
end

local function callChildren(o, head, t)
  -- A full Redis lets a script go on that has begun by freeing: to park without anything new must not need room.
  local isBare = head.park and #o.records == 0 and #o.children == 0
  if isBare then call('ZREM', of(head.kind, RUNNING), o.id) end
  callAll('HSET', TASKS, o.records)
  local added = add(o.children, true)
  if added > 0 then countGroups(o) end
  local pending = (added > 0 or head.park) and call('HINCRBY', PENDING, o.id, added) or 0
  t.id, t.calls, t.steps, t.order = o.id, head.calls, head.steps, head.order
  if head.park then
    if not isBare then call('ZREM', of(head.kind, RUNNING), o.id) end
    if pending == 0 then call('HDEL', PENDING, o.id) end
    if mayGoOn(o, head, pending) then return requeue(head.kind, { t }) end
    t.state, t.token = 'waiting', '-'
    call('ZADD', of(head.kind, WAITING), head.wake or '+inf', o.id)
    if head.wake then wake(head.kind, head.wake) end
  end
  call('HSET', LIVE, o.id, join(t))
end

for i, value in ipairs(fetch(LIVE, ids)) do
  local o, head, line = outcomes[i], outcomes[i].head, value and lineOf(value)
  if not line or not (head.free or (line.state == 'running' and line.token == head.token)) then
    codes[i] = -1
  elseif head.final then
    finish(o, head, line)
    codes[i] = line.calls
  else
    codes[i] = 0
    local t = split(value)
    if head.type == 'call' then calling[#calling + 1] = { o, head, t }
    else
      unindex(of(head.kind, RUNNING), o.id)
      if head.type == 'retry' then
        t.state, t.token, t.attempts, t.started = 'delayed', '-', t.attempts + 1, '0'
        t.envelope = o.envelope
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
-- Who watches for a few ends is told the records too, unless they are large, and need not ask for them.
local function endEvent()
  local event, size = { type = 'end', ids = roots }, 0
  if #roots > 4 then return event end
  for _, text in ipairs(texts) do size = size + #text end
  if size <= 4096 then event.records = texts end
  return event
end

-- What frees memory comes first: a script whose first write does so is not refused when Redis is full.
flushForget(); flushUnindex(); flushSet()
for key, set in pairs(sets) do
  local more = 0
  for score, ids in pairs(set.scores) do
    for i = 1, #ids, TOGETHER do index(key, score, table.concat(ids, '\n', i, math.min(i + TOGETHER - 1, #ids))) end
    more = more + #ids - math.ceil(#ids / TOGETHER)
  end
  if more > 0 and key ~= EXPIRY then call('HINCRBY', of(set.head.kind, COUNTS), FINAL[set.head.final], more) end
end
flushIndex()
for kind, count in pairs(dropped) do call('HINCRBY', of(kind, COUNTS), 'dropped', count) end
-- Parents learn of what is written before anything else is tried.
childrenEnded(ended)
for _, c in ipairs(calling) do callChildren(unpack(c)) end
for kind, tasks in pairs(released) do requeue(kind, tasks) end
local reply = arg() == '1' and claim() or false
sendWakes()
if #roots > 0 then publish('tasks:events', endEvent()) end
return { codes, reply }
