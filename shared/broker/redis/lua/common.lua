-- Put before every script.
-- KEYS: the seven of partitionKeys, then the eleven of kindKeys for each kind that ARGV names, as in keys.ts.
-- ARGV: now (ms), prefix of the channels, number of kinds, their names; then what the script's own header says. A kind is given by its number from 1.
local LIVE, TASKS, PENDING, EXPIRY, SWEEP, RESERVED, LEASES = unpack(KEYS, 1, 7)
local NORMAL, RUNNING, DELAYED, WAITING, SUCCEEDED, FAILED, CANCELLED, BROKEN, COUNTS = 2, 4, 5, 6, 7, 8, 9, 10, 11
local FINAL = { [SUCCEEDED] = 'succeeded', [FAILED] = 'failed', [CANCELLED] = 'cancelled' }
local call = redis.call
local find, match, sub = string.find, string.match, string.sub

local cursor = 0
local function arg() cursor = cursor + 1; return ARGV[cursor] end
local function number() return tonumber(arg()) end
local function of(kind, key) return KEYS[7 + (kind - 1) * 11 + key] end
local nowText = arg()
local now, channels, kinds = tonumber(nowText), arg(), {}
for i = 1, number() do kinds[i] = arg() end

-- A live value is "<state> <token> <started> <attempts used> <calls> <steps> <priority 1-3> <kind> <progress>\n<envelope>". A tenth word is the order of
-- completion, where it is not that of the numbers. A claim leaves it as it is: a task that is queued by its live value, and held, is running. The token is
-- always "-"; only stores of an earlier version have others, and "running".
local function split(value)
  local stop = find(value, '\n', 1, true)
  local state, token, started, attempts, calls, steps, priority, kind, progress, order =
    match(sub(value, 1, stop - 1), '^(%a+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d) (%S+) (%S+)(.*)$')
  return { state = state, token = token, started = started, attempts = tonumber(attempts), calls = tonumber(calls), steps = tonumber(steps),
    priority = tonumber(priority), kind = kind, progress = progress, order = order, envelope = sub(value, stop + 1) }
end
local function join(t)
  return t.state .. ' ' .. t.token .. ' ' .. t.started .. ' ' .. t.attempts .. ' ' .. t.calls .. ' ' .. t.steps .. ' '
    .. t.priority .. ' ' .. t.kind .. ' ' .. t.progress .. t.order .. '\n' .. t.envelope
end

-- Sends a variadic command 4,000 arguments at a time, under Lua's limit for unpack. Returns the sum of the replies.
local function callRange(command, key, list, first, last)
  local sum = 0
  for i = first, last, 4000 do sum = sum + call(command, key, unpack(list, i, math.min(i + 3999, last))) end
  return sum
end
local function callAll(command, key, list) return callRange(command, key, list, 1, #list) end

-- Ids that are stored as one text.
local function idsOf(entry)
  local ids = {}
  for id in string.gmatch(entry, '[^\n]+') do ids[#ids + 1] = id end
  return ids
end

-- Arguments collect for each key and go out in one variadic command a key.
-- Gives a function that adds one or two arguments, one that sends them, and one that gives the list of a key, for those that add to it often.
local function batch(command)
  local lists = {}
  local function listOf(key)
    local list = lists[key]
    if not list then list = {}; lists[key] = list end
    return list
  end
  local function add(key, first, second)
    local list = listOf(key)
    list[#list + 1] = first
    if second then list[#list + 1] = second end
  end
  local function flush()
    for key, list in pairs(lists) do callAll(command, key, list) end
    lists = {}
  end
  return add, flush, listOf
end
-- A Redis that is full refuses a script whose first write may need memory, and none that has begun to write. What must go on all the same
-- begins by freeing some, or by this, which frees none.
local function mayGrow() call('HDEL', PENDING, '') end
local function fetch(hash, ids)
  if #ids == 0 then return {} end
  if #ids <= 4000 then return call('HMGET', hash, unpack(ids)) end
  local values = {}
  for i = 1, #ids, 4000 do
    local some = call('HMGET', hash, unpack(ids, i, math.min(i + 3999, #ids)))
    for j = 1, #some do values[i + j - 1] = some[j] end
  end
  return values
end

-- A call stops reading after so many bytes, so that it holds up others for some ms at most, and no answer grows over about a megabyte.
local ENOUGH = 900000
-- How many more to take, of so many that are left, after so many were taken with so many bytes in all: few at first,
-- as nobody knows their size, and never many more than are known.
local function pieceOf(left, count, bytes, first)
  if count == 0 then return math.min(left, first) end
  return math.max(1, math.min(left, 4000, 16 * count, math.floor((ENOUGH - bytes) * count / math.max(bytes, 1))))
end
-- As fetch, but perhaps not all: at least the first, and the first value that there is, until there are enough bytes,
-- of which so many are spent. Returns the bytes that are spent then, too.
local function fetchSome(hash, ids, spent)
  local values, bytes, count, least = {}, spent or 0, 0, true
  while count < #ids and (least or bytes < ENOUGH) do
    local piece = pieceOf(#ids - count, count, bytes, 16)
    for _, value in ipairs(call('HMGET', hash, unpack(ids, count + 1, count + piece))) do
      if value then
        if not least and bytes + #value > ENOUGH then return values, bytes end
        bytes, least = bytes + #value, false
      end
      count = count + 1
      values[count] = value
    end
  end
  return values, bytes
end
-- Whether each of these is in a hash, whatever the size of its values: large ones are not read.
local function fetchKnown(hash, ids)
  local known, values = {}, fetchSome(hash, ids)
  for i, id in ipairs(ids) do known[i] = values[i] or (values[i] == nil and call('HEXISTS', hash, id) == 1) end
  return known
end

-- Who holds a running task stands beside its live value: "<token> <lease> <when this attempt began> <1 if it has a history>". The token names the claim, and is the
-- right to report how the task ended. A lease is what ends when a worker dies. It begins with the claim, for all tasks of a kind in it; to extend it for some of
-- them is to move these to a new one. So LEASES may name ids that a lease no longer holds: what the task's holder says counts. A lease of one task is named
-- by its id, and written "=" here.
local function holdField(id) return id .. '\n' end
local function holdFields(ids)
  local fields = {}
  for i, id in ipairs(ids) do fields[i] = holdField(id) end
  return fields
end
local holders = {}
local function holderOf(text)
  if not text then return nil end
  local h = holders[text]
  if not h then
    local token, lease, started, past = match(text, '^(%S+) (%S+) (%d+) (%d)$')
    h = { token = token, lease = lease, started = started, past = past == '1', size = tonumber(match(lease, '^%d+')) }
    holders[text] = h
  end
  return h
end
local function holderText(token, lease, started, past) return token .. ' ' .. lease .. ' ' .. started .. ' ' .. (past and '1' or '0') end
local function isHeldUnder(h, lease, id) return h and (h.lease == lease or h.lease == '=' and id == lease) end
-- Begins a lease; its name, as holders give it, begins with how many tasks it is for.
local function leaseName(name, kind, ids) return #ids == 1 and '=' or #ids .. ':' .. name .. ':' .. kinds[kind] end
local function startLease(kind, lease, ends, ids)
  if lease ~= '=' then call('HSET', LEASES, lease, table.concat(ids, '\n'), 'n:' .. lease, #ids) end
  call('ZADD', of(kind, RUNNING), ends, lease == '=' and ids[1] or lease)
end
local function endLease(kind, lease)
  call('HDEL', LEASES, lease, 'n:' .. lease)
  call('ZREM', of(kind, RUNNING), lease)
end
-- Takes tasks off their leases. A lease that holds nothing any more is over.
local leave, flushLeft = batch('ZREM')
local lessHeld = {}
local function takeOff(kind, id, h)
  if h.lease == '=' then return leave(of(kind, RUNNING), id) end
  local l = lessHeld[h.lease]
  if not l then
    l = { kind = kind, count = 0, size = h.size }
    lessHeld[h.lease] = l
  end
  l.count = l.count + 1
end
local function flushTakenOff()
  flushLeft()
  for lease, l in pairs(lessHeld) do
    if l.count == l.size or call('HINCRBY', LEASES, 'n:' .. lease, -l.count) <= 0 then endLease(l.kind, lease) end
  end
  lessHeld = {}
end

-- Wake-ups are hints: a store that refuses PUBLISH in a script must not undo the script.
local woken = {}
local function wake(kind, at)
  local name = kinds[kind]
  woken[name] = math.min(at or 0, woken[name] or math.huge)
end
local function publish(channel, message) redis.pcall('PUBLISH', channels .. channel, cjson.encode(message)) end
local function sendWakes() if next(woken) then publish('tasks:wake', woken) end end

-- Puts tasks back to the front of their queues: the first of them will run first.
local function requeue(kind, tasks)
  local set, flushLive = batch('HSET')
  local push, flushQueues = batch('RPUSH')
  for i = #tasks, 1, -1 do
    local t = tasks[i]
    t.state, t.token = 'queued', '-'
    set(LIVE, t.id, join(t))
    push(of(kind, t.priority), t.envelope)
  end
  flushLive(); flushQueues()
  if #tasks > 0 then wake(kind) end
end

-- Where a parent's unfinished children of one group are counted that it awaits beside others.
local function groupField(parent, group) return parent .. '\n' .. group end

-- Takes children that ended off the count in a field of PENDING; true when none is left. Below zero they were not counted.
local function countDown(field, count)
  local left = call('HINCRBY', PENDING, field, -count)
  if left <= 0 then call('HDEL', PENDING, field) end
  return left == 0
end

-- Tells parents that children ended: ended[kind][parent] = { count, alone = whether one of them wakes it by itself, groups = count of each group }.
-- The last of all, or of a group, puts the parent back.
local function childrenEnded(ended)
  for kind, parents in pairs(ended) do
    for id, e in pairs(parents) do
      local wakes = countDown(id, e.count) or e.alone
      for group, count in pairs(e.groups) do
        if countDown(groupField(id, group), count) then wakes = true end
      end
      local value = wakes and call('HGET', LIVE, id)
      local t = value and split(value)
      if t and t.state == 'waiting' then
        t.id = id
        call('ZREM', of(kind, WAITING), id)
        requeue(kind, { t })
      end
    end
  end
end

-- Tasks that ended at one time, or expire at one, share entries of a sorted set: less memory, and no search for a place for each. An
-- entry is at most 110 ids with a newline between them: as many UUIDs as fit into 4 KiB.
local TOGETHER = 110

-- Takes ids out of such a set: times[id] = its score, which finds the entry, or '-' when that is not known. Returns by how many more
-- ids than entries it has shrunk.
local function takeOut(key, times)
  local ids, shared, shrunk = {}, {}, 0
  for id in pairs(times) do ids[#ids + 1] = id end
  -- Those that are alone in their entry are found without their time, all at once.
  if callAll('ZREM', key, ids) == #ids then return 0 end
  for id, time in pairs(times) do
    shared[time] = shared[time] or {}
    shared[time][id] = true
  end
  shared['-'] = nil
  for time, wanted in pairs(shared) do
    for _, entry in ipairs(call('ZRANGEBYSCORE', key, time, time)) do
      local all, kept = idsOf(entry), {}
      for _, id in ipairs(all) do
        if not wanted[id] then kept[#kept + 1] = id end
      end
      if #kept < #all then
        shrunk = shrunk + #all - math.max(#kept, 1)
        call('ZREM', key, entry)
        if #kept > 0 then call('ZADD', key, time, table.concat(kept, '\n')) end
      end
    end
  end
  return shrunk
end

-- Forgets that tasks have ended. For each: id, kind, key number of its final state, when it ended and when its record expires; '-' for what is not known.
local function forgetEnded(tasks)
  local sets = {}
  local function timesIn(key, t)
    sets[key] = sets[key] or { task = t, times = {} }
    return sets[key].times
  end
  for _, t in ipairs(tasks) do
    if t.expiry ~= '-' then timesIn(EXPIRY, t)[t.id] = t.expiry end
    if t.kind > 0 then timesIn(of(t.kind, t.state), t)[t.id] = t.at end
  end
  for key, set in pairs(sets) do
    local shrunk = takeOut(key, set.times)
    if shrunk > 0 and key ~= EXPIRY then call('HINCRBY', of(set.task.kind, COUNTS), FINAL[set.task.state], -shrunk) end
  end
end
local function readEnded(id) return { id = id, kind = number(), state = number(), at = arg(), expiry = arg() } end

-- ARGV of new tasks: how many; for each: "<kind> <priority> <when due or -> <group, or nothing>", id, envelope. Mostly they begin alike: each head is read once.
local taskHeads = {}
local function readTaskHead(text)
  local kind, priority, due, group = match(text, '^(%d+) (%d) (%S+) ?(%d*)$')
  local head = { kind = tonumber(kind), due = tonumber(due), group = group ~= '' and group }
  if head.due and head.due <= now then head.due = nil end
  head.key = of(head.kind, head.due and DELAYED or tonumber(priority))
  -- Around the calls and steps of the live value.
  head.before, head.after = head.due and 'delayed - 0 0 ' or 'queued - 0 0 ', ' ' .. priority .. ' ' .. kinds[head.kind] .. ' -\n'
  head.fresh = head.before .. '0 0' .. head.after
  taskHeads[text] = head
  return head
end
local function newTasks()
  local tasks = {}
  for i = 1, number() do
    local text = arg()
    tasks[i] = { head = taskHeads[text] or readTaskHead(text), id = arg(), envelope = arg() }
  end
  return tasks
end

-- Adds new tasks that are not known yet, at the back; .calls, if there, is "<calls> <steps>", and .order their tenth word. Returns how many were added and marks those with .created.
local function add(tasks, check)
  local known = {}
  if check then
    local ids = {}
    for i, t in ipairs(tasks) do ids[i] = t.id end
    local live, final = fetchKnown(LIVE, ids), fetchKnown(TASKS, ids)
    for i, id in ipairs(ids) do known[id] = live[i] or final[i] end
  end
  local _, flushLive, liveOf = batch('HSET')
  local _, flushQueues, queueOf = batch('LPUSH')
  local _, flushDelayed, delayedOf = batch('ZADD')
  local live, places, count = liveOf(LIVE), {}, 0
  for _, t in ipairs(tasks) do
    local id, head = t.id, t.head
    if not known[id] then
      known[id], t.created, count = true, true, count + 1
      local n, to = #live + 1, places[head]
      if not to then
        to = (head.due and delayedOf or queueOf)(head.key)
        places[head] = to
        wake(head.kind, head.due)
      end
      live[n], live[n + 1] = id, (t.calls and head.before .. t.calls .. sub(head.after, 1, -2) .. t.order .. '\n' or head.fresh) .. t.envelope
      if head.due then to[#to + 1] = head.due end
      to[#to + 1] = head.due and id or t.envelope
    end
  end
  flushLive(); flushQueues(); flushDelayed()
  return count
end
