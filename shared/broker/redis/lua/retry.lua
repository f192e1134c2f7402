-- ARGV: number of tasks; for each the token of its reservation (see reserve.lua), its calls and steps as one text, the tenth word of its live value, then as for a removal: kind, key
-- number of its state, when it ended, when its record expires; then the new tasks.
-- Returns for each 1 when it is queued again, 0 when it has no final record, or is not reserved.
local tokens, calls, orders, ended, ids, again, gone, reply = {}, {}, {}, {}, {}, {}, {}, {}
for i = 1, number() do tokens[i], calls[i], orders[i], ended[i] = tonumber(arg()), arg(), arg(), readEnded() end
local tasks = newTasks()
for i, t in ipairs(tasks) do ids[i], ended[i].id = t.id, t.id end
for i, record in ipairs(fetch(TASKS, ids)) do
  local t = tasks[i]
  local ends = record and call('ZSCORE', RESERVED, t.id)
  reply[i] = ends and tonumber(ends) == tokens[i] and 1 or 0
  if reply[i] == 1 then
    call('HDEL', TASKS, t.id)
    call('ZREM', RESERVED, t.id)
    t.calls, t.order = calls[i], orders[i]
    again[#again + 1], gone[#gone + 1] = t, ended[i]
  end
end
forgetEnded(gone)
add(again, false)
sendWakes()
return reply
