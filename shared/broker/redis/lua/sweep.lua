-- ARGV: how many to look at. No kinds.
-- Returns { ids whose record has expired, { id, record, live value of each live task that has a record } }.
local limit, ids, values, expired, foreign, bytes, scan = number(), {}, {}, {}, {}, 0, call('GET', SWEEP) or '0'
while #ids < limit and bytes < ENOUGH do
  local scanned = call('HSCAN', LIVE, scan, 'COUNT', pieceOf(limit - #ids, #ids, bytes, 4))
  scan = scanned[1]
  for i = 1, #scanned[2], 2 do
    local n = #ids + 1
    ids[n], values[n] = scanned[2][i], scanned[2][i + 1]
    bytes = bytes + #values[n]
  end
  if scan == '0' then break end
end
-- A full store refuses this, and must be swept all the same.
redis.pcall('SET', SWEEP, scan)
for i, record in ipairs(fetchSome(TASKS, ids)) do
  if record then
    for _, field in ipairs({ ids[i], record, values[i] }) do foreign[#foreign + 1] = field end
  end
end
local due, gone = call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit), {}
for i = 1, #due, 2 do
  if #expired >= limit then break end
  local roots = idsOf(due[i])
  for j, record in ipairs(fetchSome(TASKS, roots)) do
    if record and #expired < limit then expired[#expired + 1] = roots[j]
    elseif not record then
      gone[roots[j]] = due[i + 1]
    end
  end
end
if next(gone) then takeOut(EXPIRY, gone) end
return { expired, foreign }
