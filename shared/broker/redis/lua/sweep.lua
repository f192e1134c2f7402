-- ARGV: how many to look at; until when nobody else is given what this call gives as expired. No kinds.
-- Returns { ids whose record has expired, { id, record, live value of each live task that has a record } }.
local limit, takenUntil, before = number(), arg(), call('GET', SWEEP) or '0'
local scan, ids, values, seen, steps, bytes = before, {}, {}, {}, {}, 0
while #ids < limit and bytes < ENOUGH do
  steps[#steps + 1] = { scan = scan, last = #ids }
  local scanned = call('HSCAN', LIVE, scan, 'COUNT', pieceOf(limit - #ids, #ids, bytes, 4))
  scan = scanned[1]
  for i = 1, #scanned[2], 2 do
    local id, value = scanned[2][i], scanned[2][i + 1]
    bytes = bytes + #value
    -- Not who holds a task. A hash that grows may give one twice.
    if sub(id, -1) ~= '\n' and not seen[id] then
      seen[id] = true
      ids[#ids + 1], values[#values + 1] = id, value
    end
  end
  if scan == '0' then break end
end
local foreign, records = {}, fetchSome(TASKS, ids)
for i, record in ipairs(records) do
  if record then
    for _, field in ipairs({ ids[i], record, values[i] }) do foreign[#foreign + 1] = field end
  end
end
-- Records that were too much for this call are looked for again, from the step in which the first of them was found.
for i = #steps, 1, -1 do
  if #records < #ids and steps[i].last <= #records then scan = steps[i].scan; break end
end
-- A full store refuses this, and must be swept all the same.
if scan ~= before then redis.pcall('SET', SWEEP, scan) end

-- What is given is kept from others for a while, each id in an entry of its own: who removes it finds it there, and if
-- nobody does, it is due again.
local expired, taken, left, entries, times, roots, lasts = {}, {}, {}, {}, {}, {}, {}
while #roots < limit do
  local some = pieceOf(limit - #roots, #entries, 0, 16)
  local due = call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'WITHSCORES', 'LIMIT', #entries, some)
  for i = 1, #due, 2 do
    if #roots >= limit then break end
    for _, id in ipairs(idsOf(due[i])) do roots[#roots + 1] = id end
    entries[#entries + 1], times[#times + 1], lasts[#lasts + 1] = due[i], due[i + 1], #roots
  end
  if #due < 2 * some then break end
end
local known, first = fetchKnown(TASKS, roots), 1
for i, last in ipairs(lasts) do
  local rest = {}
  for j = first, last do
    if known[j] and #expired < limit then
      expired[#expired + 1] = roots[j]
      taken[#taken + 1], taken[#taken + 2] = takenUntil, roots[j]
    elseif known[j] then rest[#rest + 1] = roots[j] end
  end
  if #rest > 0 then left[#left + 1], left[#left + 2] = times[i], table.concat(rest, '\n') end
  first = last + 1
end
-- What frees memory comes first.
callAll('ZREM', EXPIRY, entries)
callAll('ZADD', EXPIRY, taken)
callAll('ZADD', EXPIRY, left)
return { expired, foreign }
