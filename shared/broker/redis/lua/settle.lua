-- ARGV: number of groups of outcomes; for each: "<type> <kind> <parent> <more> <token>", parent's id if there is one, then by type (more: what). <parent>, where
-- a task ends, is its kind, else 0, and after a colon the group that the parent awaits the task in beside others: "one" for the task alone.
--   end, cancel, adopt (<final state's key number>,<when it ended>,<expiry or ->): number of tasks, (id, record) of each
--   retry (<when due>): id, envelope     release (-): id
--   call (<calls>,<steps>,<park, 1 or 0>,<wake at or ->,<order, or nothing>): id, number of records, (id, record) of each, the new tasks; to park: how many
--     children it awaits alone, or - when it awaits all together, and how many groups, and the groups
-- then 1 and the claim that follows, or 0.
-- Returns { numbers of the outcomes that were refused, lengths of the histories of those that were cancelled or adopted, the claim's reply or false }.
-- Many begin alike: each beginning is read once.
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

local groups, ids, changed = {}, {}, {}
for i = 1, number() do
  local text = arg()
  local head = heads[text] or readHead(text)
  local o = { head = head, parent = head.parentKind > 0 and arg(), first = #ids + 1 }
  if head.final then
    local count = number()
    o.args = cursor + 1
    for n = o.first, #ids + count do ids[n], cursor = ARGV[cursor + 1], cursor + 2 end
  else
    o.id = arg()
    ids[o.first] = o.id
    if head.type == 'retry' then o.envelope = arg() end
    if head.type == 'call' then
      o.records = {}
      for j = 1, 2 * number() do o.records[j] = arg() end
      o.children = newTasks()
      if head.park then
        o.alone, o.groups = number(), {}
        for j = 1, number() do o.groups[j] = arg() end
      end
    end
  end
  o.last = #ids
  -- How most tasks end needs nothing of their live values.
  if head.type ~= 'end' then
    for n = o.first, o.last do changed[#changed + 1] = ids[n] end
  end
  groups[i] = o
end

-- And so is each line of a live value.
local lines = {}
local function lineOf(value)
  local text = sub(value, 1, find(value, '\n', 1, true))
  local line = lines[text]
  if not line then
    local state, calls = match(text, '^(%a+) %S+ %d+ %d+ (%d+)')
    line = { state = state, calls = tonumber(calls) }
    lines[text] = line
  end
  return line
end

local set, flushSet = batch('HSET')
local forget, flushForget, forgetOf = batch('HDEL')
local index, flushIndex = batch('ZADD')
local unindex, flushUnindex = batch('ZREM')
local fields = holdFields(ids)
for i, id in ipairs(changed) do fields[#ids + i] = id end
local held, values = fetch(LIVE, fields), {}
for i, id in ipairs(changed) do values[id] = held[#ids + i] end
local refused, lengths, calling, released, ended, roots, texts, sets, dropped = {}, {}, {}, {}, {}, {}, {}, {}, {}
local PLACES = { delayed = DELAYED, waiting = WAITING }
local gone, written = forgetOf(LIVE), {}

-- The ids that get one score in one sorted set.
local function addTogether(key, score, head, list)
  local set = sets[key] or { head = head, scores = {} }
  sets[key] = set
  local before = set.scores[score]
  if not before then set.scores[score] = list
  else
    -- Other sets may share the lists.
    local all = {}
    for _, ids in ipairs({ before, list }) do
      for _, id in ipairs(ids) do all[#all + 1] = id end
    end
    set.scores[score] = all
  end
end

local function letGo(o, h)
  gone[#gone + 1] = fields[o.first]
  takeOff(o.head.kind, o.id, h)
end

-- Takes a task from where it is, which ends as it is not held: cancelled, or by a foreign program.
local function takeFromPlace(head, id, line)
  -- Running in a store of an earlier version.
  if line.state == 'running' then unindex(of(head.kind, RUNNING), id)
  elseif line.state ~= 'queued' then unindex(of(head.kind, PLACES[line.state]), id)
  elseif head.type == 'cancel' then dropped[head.kind] = (dropped[head.kind] or 0) + 1 end
end

local function tellParent(o, head, count)
  local parents = ended[head.parentKind] or {}
  ended[head.parentKind] = parents
  local e = parents[o.parent] or { count = 0, groups = {} }
  parents[o.parent] = e
  e.count = e.count + count
  if head.group == 'one' then e.alone = true
  elseif head.group ~= '' then e.groups[head.group] = (e.groups[head.group] or 0) + count end
end

-- Ends the tasks of a group. Those that may not end are noted as refused.
local function finish(o)
  local head, own, recordsOf, seen, h = o.head, {}, nil, nil, nil
  local n, count, first = #gone, 0, o.first
  for i = first, o.last do
    local id, text = ids[i], held[i]
    if text ~= seen then seen, h = text, holderOf(text) end
    local line = head.free and values[id] and lineOf(values[id])
    if head.free then lengths[#lengths + 1] = line and line.calls or -1 end
    if line or not head.free and h and h.token == head.token then
      count = count + 1
      own[count], gone[n + 1], n = id, id, n + 1
      if h then
        n = n + 1
        gone[n] = fields[i]
        takeOff(head.kind, id, h)
      else takeFromPlace(head, id, line) end
      if h and h.past or line and line.calls > 0 then forget(PENDING, id) end
      if not o.parent and #roots + count <= 4 then texts[#texts + 1] = ARGV[o.args + 2 * (i - first) + 1] end
      if recordsOf then recordsOf[2 * count - 1], recordsOf[2 * count] = id, ARGV[o.args + 2 * (i - first) + 1] end
    else
      refused[#refused + 1] = i
      -- Those before were all accepted.
      if not recordsOf then
        recordsOf = {}
        for n = 1, 2 * count do recordsOf[n] = ARGV[o.args + n - 1] end
      end
    end
  end
  if count == 0 then return end
  -- Records go from the arguments to the store as they are.
  written[#written + 1] = { recordsOf or ARGV, recordsOf and 1 or o.args, recordsOf and 2 * count or o.args + 2 * count - 1 }
  addTogether(of(head.kind, head.final), head.at, head, own)
  if o.parent then return tellParent(o, head, count) end
  for _, id in ipairs(own) do roots[#roots + 1] = id end
  if head.expiry then addTogether(EXPIRY, head.expiry, head, own) end
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

-- To park without anything new must not need room.
local function isBare(o, head) return head.park and #o.records == 0 and #o.children == 0 end

local function callChildren(o, head, h, t)
  callAll('HSET', TASKS, o.records)
  local added = add(o.children, true)
  if added > 0 then countGroups(o) end
  local pending = (added > 0 or head.park) and call('HINCRBY', PENDING, o.id, added) or 0
  t.calls, t.steps, t.order = head.calls, head.steps, head.order
  if head.park then
    if not isBare(o, head) then letGo(o, h) end
    if pending == 0 then call('HDEL', PENDING, o.id) end
    if mayGoOn(o, head, pending) then return requeue(head.kind, { t }) end
    t.state = 'waiting'
    call('ZADD', of(head.kind, WAITING), head.wake or '+inf', o.id)
    if head.wake then wake(head.kind, head.wake) end
  elseif not h.past then
    call('HSET', LIVE, holdField(o.id), holderText(h.token, h.lease, h.started, true))
  end
  call('HSET', LIVE, o.id, join(t))
end

local function change(o, h)
  local head, t = o.head, split(values[o.id])
  t.id, t.started = o.id, h.started
  if head.type == 'call' then
    calling[#calling + 1] = { o, head, h, t }
    if isBare(o, head) then letGo(o, h) end
    return
  end
  letGo(o, h)
  if head.type == 'retry' then
    t.state, t.attempts, t.started, t.envelope = 'delayed', t.attempts + 1, '0', o.envelope
    set(LIVE, o.id, join(t))
    index(of(head.kind, DELAYED), head.due, o.id)
    wake(head.kind, tonumber(head.due))
  else
    released[head.kind] = released[head.kind] or {}
    table.insert(released[head.kind], t)
  end
end

for _, o in ipairs(groups) do
  if o.head.final then finish(o)
  else
    local h = holderOf(held[o.first])
    if h and h.token == o.head.token then change(o, h) else refused[#refused + 1] = o.first end
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
flushForget(); flushTakenOff(); flushUnindex(); flushSet()
for _, part in ipairs(written) do callRange('HSET', TASKS, unpack(part)) end
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
gone = forgetOf(LIVE)
for _, c in ipairs(calling) do callChildren(unpack(c)) end
flushForget(); flushTakenOff()
for kind, tasks in pairs(released) do requeue(kind, tasks) end
local reply = arg() == '1' and claim() or false
sendWakes()
if #roots > 0 then publish('tasks:events', endEvent()) end
return { refused, lengths, reply }
