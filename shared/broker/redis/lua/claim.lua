-- ARGV of a claim: limit, end of the lease, token, whether to take back (1 or 0), whether the call was sent before (1 or 0), number of kinds,
-- the kinds in order of turn.
-- Returns { when the next is due or '', the ids with \30 between them, their live values (see common.lua), when an attempt began whose value says 0 }.
-- Puts back the tasks of leases that are over, each with an attempt used up, until there are enough bytes, of which so many are spent. Returns whether some are
-- left, and the bytes that are spent then.
local function takeBackHeld(kind, leases, bytes)
  local forget, flushForget = batch('HDEL')
  local tasks, isMore = {}, false
  for i, text in ipairs(fetch(LEASES, leases)) do
    isMore = bytes >= ENOUGH
    if isMore then break end
    local lease, mine, values = leases[i], {}, nil
    local ids = text and idsOf(text) or { lease }
    local held = fetch(LIVE, holdFields(ids))
    for j, id in ipairs(ids) do
      if isHeldUnder(holderOf(held[j]), lease, id) or not text and not held[j] then mine[#mine + 1] = id end
    end
    values, bytes = fetchSome(LIVE, mine, bytes)
    for j, value in ipairs(values) do
      local t = value and split(value)
      -- In a store of an earlier version a running task is held by nobody, and says so itself.
      if t and (text or held[j] or t.state == 'running') then
        t.id, t.attempts, t.started = mine[j], t.attempts + 1, '0'
        tasks[#tasks + 1] = t
        forget(LIVE, holdField(t.id))
      end
    end
    isMore = #values < #mine
    if not isMore then endLease(kind, lease)
    else call('HSET', LEASES, lease, table.concat(mine, '\n', #values + 1), 'n:' .. lease, #mine - #values) end
    if isMore then break end
  end
  flushForget()
  requeue(kind, tasks)
  return isMore, bytes
end

local function takeBack(claimable, limit)
  local keys, nextDue, bytes = {}, nil, 0
  for _, kind in ipairs(claimable) do
    for key = RUNNING, WAITING do keys[#keys + 1] = of(kind, key) end
  end
  if call('EXISTS', unpack(keys)) == 0 then return nil end
  for _, kind in ipairs(claimable) do
    for key = RUNNING, WAITING do
      local due, ids = call('ZRANGE', of(kind, key), 0, limit - 1, 'WITHSCORES'), {}
      for i = 1, #due, 2 do
        local at = tonumber(due[i + 1])
        if at > now then
          if at < math.huge and (not nextDue or at < nextDue) then nextDue = at end
          break
        end
        ids[#ids + 1] = due[i]
      end
      if key == RUNNING then
        local isMore
        isMore, bytes = takeBackHeld(kind, ids, bytes)
        if isMore or #ids == limit then nextDue = now end
        if bytes >= ENOUGH then return now end
      elseif #ids > 0 then
        local tasks, handled, values = {}, {}, nil
        values, bytes = fetchSome(LIVE, ids, bytes)
        for i, value in ipairs(values) do
          handled[i] = ids[i]
          if value then
            local t = split(value)
            t.id = ids[i]
            tasks[#tasks + 1] = t
          end
        end
        callAll('ZREM', of(kind, key), handled)
        requeue(kind, tasks)
        -- What is left is due all the same.
        if #handled < #ids or #ids == limit then nextDue = now end
        if bytes >= ENOUGH then return now end
      end
    end
  end
  return nextDue
end

-- What the call before, whose answer was lost, has claimed under this token: its leases end then.
local function claimedBefore(claimable, deadline, token, claimed, values)
  for _, kind in ipairs(claimable) do
    for _, lease in ipairs(call('ZRANGEBYSCORE', of(kind, RUNNING), deadline, deadline)) do
      local text = call('HGET', LEASES, lease)
      local ids = text and idsOf(text) or { lease }
      local held = fetch(LIVE, holdFields(ids))
      for i, value in ipairs(fetch(LIVE, ids)) do
        local h = holderOf(held[i])
        if value and h and h.token == token then
          local t = split(value)
          t.started = h.started
          claimed[#claimed + 1], values[#values + 1] = ids[i], join(t)
        end
      end
    end
  end
  return #claimed > 0
end

-- Whether bytes are UTF-8. Clients hand on other bytes changed, and the task could be settled under no name.
local function isText(id)
  if not find(id, '[\128-\255]') then return true end
  for _, wrong in ipairs({ '\224[\128-\159]', '\237[\160-\191]', '\240[\128-\143]', '\244[\144-\191]' }) do
    if find(id, wrong) then return false end
  end
  for _, char in ipairs({ '[\240-\244][\128-\191][\128-\191][\128-\191]', '[\224-\239][\128-\191][\128-\191]', '[\194-\223][\128-\191]' }) do
    id = string.gsub(id, char, ' ')
  end
  return not find(id, '[\128-\255]')
end

-- Whether an envelope begins as ours do, with an id that has escapes in it.
local function isEscapedOurs(envelope)
  local stop = sub(envelope, 1, 12) == '{"task_id":"' and find(envelope, '","v":1,', 13, true)
  return stop and not find(string.gsub(sub(envelope, 13, stop - 1), '\\.', ''), '"', 1, true) or false
end

-- The id of an envelope, and whether it is one of ours: whatever isOurs (task.ts) takes for one must be one here, since
-- only here can tell that nobody queued it. Those begin with their id, as most others do; the rest must be read, and
-- nothing but its task_id is used. An envelope that names another id further on is found out by the worker.
local function idOf(envelope)
  -- As nearly all are; then any that can be told without decoding.
  local id, mark = match(envelope, '^{"task_id":"([%w.-]+)",("?v?"?:?1?,?)')
  if id and #id <= 256 then return id, mark == '"v":1,' end
  id, mark = match(envelope, '^{%s*"task_id"%s*:%s*"([^"\\%c]+)"%s*,("?v?"?:?1?,?)')
  if id and mark == '"v":1,' then return id, true end
  if id and #id <= 256 and isText(id) then return id, false end
  local ok, decoded = pcall(cjson.decode, envelope)
  id = ok and type(decoded) == 'table' and decoded.task_id
  if type(id) ~= 'string' or #id == 0 or #id > 256 or find(id, '%c') or not isText(id) then return nil end
  return id, isEscapedOurs(envelope)
end

-- Keeps aside what nobody can run, the newest 1,000 of it.
local function keepAside(kind, envelope)
  call('LPUSH', of(kind, BROKEN), envelope)
  call('LTRIM', of(kind, BROKEN), 0, 999)
end

-- Notes who holds claimed tasks, and until when.
local function hold(kind, token, deadline, own, live)
  local lease = leaseName(token, kind, own.ids)
  local first, n = holderText(token, lease, nowText, false), #live
  for i, value in ipairs(own.values) do
    local holder = first
    if sub(value, 10, 15) ~= '0 0 0 ' then
      local started, calls = match(value, '^%a+ %- (%d+) %d+ (%d+)')
      holder = holderText(token, lease, started == '0' and nowText or started, calls ~= '0')
    end
    live[n + 1], live[n + 2] = own.fields[i], holder
    n = n + 2
  end
  startLease(kind, lease, deadline, own.ids)
end

-- Where to take envelopes from: `high` before `normal` before `low`, in the order of the kinds within one priority.
local function queuesOf(claimable)
  local from = { kindOf = {}, priorityOf = {}, count = 0, bytes = 0 }
  local queues = {}
  for priority = 1, 3 do
    for _, kind in ipairs(claimable) do
      local queue = of(kind, priority)
      queues[#queues + 1], from.kindOf[queue], from.priorityOf[queue] = queue, kind, priority
    end
  end
  from.pop = { 'LMPOP', #queues, unpack(queues) }
  for _, word in ipairs({ 'RIGHT', 'COUNT', 0 }) do from.pop[#from.pop + 1] = word end
  return from
end

-- Takes envelopes, up to so many. Returns them, and the queue that each was in. `from` says whether that was the last, and if so, whether for want of room.
local function pop(from, limit)
  local envelopes, queueOf, n = {}, {}, 0
  while n < limit and not from.isDone do
    from.pop[#from.pop] = pieceOf(limit - n, from.count, from.bytes, 4)
    local popped = call(unpack(from.pop))
    from.isDone = not popped
    for i, envelope in ipairs(popped and popped[2] or {}) do
      if from.bytes > 0 and from.bytes + #envelope > ENOUGH then
        -- Too much for one answer: the rest goes back, in its order.
        for j = #popped[2], i, -1 do call('RPUSH', popped[1], popped[2][j]) end
        from.isDone, from.isFull = true, true
        break
      end
      n, from.count, from.bytes = n + 1, from.count + 1, from.bytes + #envelope
      envelopes[n], queueOf[n] = envelope, popped[1]
    end
  end
  return envelopes, queueOf
end

-- The ids of envelopes, and whether they are ours. Those without one are kept aside. Also gives the final records of those that are not.
local function read(from, envelopes, queueOf)
  local ids, ours, at, foreign, ended, n = {}, {}, {}, {}, {}, 0
  for i, envelope in ipairs(envelopes) do
    local id, isOurs = idOf(envelope)
    if id then
      n = n + 1
      ids[n], ours[n], at[n] = id, isOurs, i
      if not isOurs then foreign[#foreign + 1] = id end
    else
      keepAside(from.kindOf[queueOf[i]], envelope)
    end
  end
  for i, isKnown in ipairs(fetchKnown(TASKS, foreign)) do ended[foreign[i]] = isKnown end
  return ids, ours, at, ended
end

-- The live value of a pushed task; nil where nobody may run it.
local function liveValueOf(id, kind, priority, envelope)
  -- Only their parent makes children: an id with a dot that nobody knows would be taken for its call.
  if find(id, '.', 1, true) then return keepAside(kind, envelope) end
  return 'queued - 0 0 0 0 ' .. priority .. ' ' .. kinds[kind] .. ' -\n' .. envelope
end

local function claim()
  local limit, deadline, token, back, resent = number(), arg(), arg(), arg() == '1', arg() == '1'
  local claimable, due, claimed, values = {}, '', {}, {}
  local function answer() return { due, table.concat(claimed, '\30'), values, nowText } end
  for i = 1, number() do claimable[i] = number() end
  if resent and claimedBefore(claimable, deadline, token, claimed, values) then return answer() end
  if back then due = tostring(takeBack(claimable, math.max(limit, 100)) or '') end
  local from = queuesOf(claimable)
  local _, flushLive, liveOf = batch('HSET')
  local live, mine, taken, dropped, count = liveOf(LIVE), {}, {}, {}, 0
  while count < limit and not from.isDone do
    local envelopes, queueOf = pop(from, limit - count)
    local ids, ours, at, ended = read(from, envelopes, queueOf)
    local n = #ids
    for i = 1, n do ids[n + i] = holdField(ids[i]) end
    local known = fetch(LIVE, ids)
    for i = 1, n do
      local id, value, queue = ids[i], known[i], queueOf[at[i]]
      local kind, isMine = from.kindOf[queue], false
      if known[n + i] or taken[id] then isMine = false
      elseif value then isMine = sub(value, 1, 9) == 'queued - '
      elseif not ours[i] and not ended[id] then
        value = liveValueOf(id, kind, from.priorityOf[queue], envelopes[at[i]])
        isMine = value ~= nil
        if value then live[#live + 1] = id; live[#live + 1] = value end
      end
      if isMine then
        local own = mine[kind] or { ids = {}, fields = {}, values = {} }
        local to = #own.ids + 1
        mine[kind], taken[id], count = own, true, count + 1
        claimed[count], values[count] = id, value
        own.ids[to], own.fields[to], own.values[to] = id, ids[n + i], value
      elseif ours[i] or ended[id] then
        dropped[kind] = (dropped[kind] or 0) + 1
      end
    end
  end
  if from.isFull then due = nowText end
  for kind, number in pairs(dropped) do
    -- Below zero when nobody counted the envelope: a foreign program ended the task and left it, or pushed the id again.
    if call('HINCRBY', of(kind, COUNTS), 'dropped', -number) < 0 then call('HSET', of(kind, COUNTS), 'dropped', 0) end
  end
  for kind, own in pairs(mine) do hold(kind, token, deadline, own, live) end
  flushLive()
  return answer()
end
