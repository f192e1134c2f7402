-- ARGV: how much of a large envelope is wanted, from its end.
-- Returns for each kind: length of the three queues; how many are running, delayed and waiting, and are kept that succeeded, failed and were cancelled; how many are
-- broken; how many succeeded and failed within 60 s; how many envelopes belong to nobody; then the envelope at the
-- front of each queue, of a large one the end.
local since, SAMPLE, wanted = '(' .. now - 60000, 200, number()

-- Of a great many, the newest tell how many share an entry.
local function endedSince(key)
  local newest, count = call('ZRANGE', key, '+inf', since, 'BYSCORE', 'REV', 'LIMIT', 0, SAMPLE), 0
  for _, entry in ipairs(newest) do count = count + #idsOf(entry) end
  if #newest < SAMPLE then return count end
  return math.floor(count / SAMPLE * call('ZCOUNT', key, since, '+inf'))
end

-- How many tasks the leases of a kind hold. One that is not told of is of one task.
local function running(kind)
  local fields, count = {}, 0
  for i, lease in ipairs(call('ZRANGE', of(kind, RUNNING), 0, -1)) do fields[i] = 'n:' .. lease end
  for _, held in ipairs(fetch(LEASES, fields)) do count = count + tonumber(held or 1) end
  return count
end

local reply = {}
for kind = 1, #kinds do
  local row = {}
  for priority = 1, 3 do row[priority] = call('LLEN', of(kind, priority)) end
  for key = DELAYED, CANCELLED do row[key] = call('ZCARD', of(kind, key)) end
  row[RUNNING] = running(kind)
  local counts = call('HMGET', of(kind, COUNTS), 'succeeded', 'failed', 'cancelled', 'dropped')
  for i, key in ipairs({ SUCCEEDED, FAILED, CANCELLED }) do row[key] = row[key] + tonumber(counts[i] or 0) end
  row[BROKEN] = call('LLEN', of(kind, BROKEN))
  for _, key in ipairs({ SUCCEEDED, FAILED }) do row[#row + 1] = endedSince(of(kind, key)) end
  -- Where no envelope is left none can be dropped: foreign workers take them without counting.
  local dropped = row[1] + row[2] + row[3] > 0 and counts[4]
  if counts[4] and not dropped then call('HDEL', of(kind, COUNTS), 'dropped') end
  row[#row + 1] = dropped
  for priority = 1, 3 do
    local front = call('LINDEX', of(kind, priority), -1)
    row[#row + 1] = front and sub(front, -wanted)
  end
  reply[kind] = row
end
return reply
