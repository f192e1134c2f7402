-- ARGV: how many to look at. No kinds.
-- Returns { ids whose record has expired, { id, record, live value of each live task that has a record } }.
local limit, ids, values, foreign = number(), {}, {}, {}
local scanned = call('HSCAN', LIVE, call('GET', SWEEP) or '0', 'COUNT', limit)
call('SET', SWEEP, scanned[1])
for i = 1, #scanned[2], 2 do ids[#ids + 1], values[#values + 1] = scanned[2][i], scanned[2][i + 1] end
for i, record in ipairs(fetch(TASKS, ids)) do
  if record then
    for _, field in ipairs({ ids[i], record, values[i] }) do foreign[#foreign + 1] = field end
  end
end
return { call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'LIMIT', 0, limit), foreign }
