-- ARGV: number of tasks; for each its calls and steps as one text, then as for a removal: kind, key number of its state, when it ended, when
-- its record expires; then the new tasks.
-- Returns for each 1 when it is queued again, 0 when it has no final record.
local calls, ended, ids, again, gone, reply = {}, {}, {}, {}, {}, {}
for i = 1, number() do calls[i], ended[i] = arg(), readEnded() end
local tasks = newTasks()
for i, t in ipairs(tasks) do ids[i], ended[i].id = t.id, t.id end
for i, record in ipairs(fetch(TASKS, ids)) do
  local t = tasks[i]
  reply[i] = record and 1 or 0
  if record then
    call('HDEL', TASKS, t.id)
    t.calls = calls[i]
    again[#again + 1], gone[#gone + 1] = t, ended[i]
  end
end
forgetEnded(gone)
add(again, false)
sendWakes()
return reply
