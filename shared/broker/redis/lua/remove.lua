-- ARGV: number of tasks; for each: id, kind or 0 when it is not known.
-- Returns nothing of use. A live task keeps everything: it has no final record, and is in none of these sets.
local drop, flushRecords = batch('HDEL')
local unindex, flushIndex = batch('ZREM')
for _ = 1, number() do
  local id, kind = arg(), number()
  drop(TASKS, id)
  unindex(EXPIRY, id)
  if kind > 0 then
    for key = SUCCEEDED, CANCELLED do unindex(of(kind, key), id) end
  end
end
flushRecords(); flushIndex()
return true
