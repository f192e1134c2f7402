-- ARGV: number of tasks; for each: id, kind or 0 when it is not known, when its record expires or -.
-- Returns nothing of use. A live task keeps everything: it has no final record, and is in none of these sets.
local drop, flushRecords = batch('HDEL')
local unindex, flushIndex = batch('ZREM')
local due = {}
for _ = 1, number() do
  local id, kind, time = arg(), number(), arg()
  drop(TASKS, id)
  if time ~= '-' then
    due[time] = due[time] or {}
    due[time][id] = true
  end
  if kind > 0 then
    for key = SUCCEEDED, CANCELLED do unindex(of(kind, key), id) end
  end
end
flushRecords(); flushIndex()
unexpire(due)
return true
