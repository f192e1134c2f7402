-- ARGV: number of tasks; for each its calls and steps as one text, and when its record expires or -; then the new tasks.
-- Returns for each 1 when it is queued again, 0 when it has no final record.
local calls, times, ids, again, reply = {}, {}, {}, {}, {}
for i = 1, number() do calls[i], times[i] = arg(), arg() end
local tasks = newTasks()
for i, t in ipairs(tasks) do ids[i] = t.id end
for i, record in ipairs(fetch(TASKS, ids)) do
  local t = tasks[i]
  reply[i] = record and 1 or 0
  if record then
    call('HDEL', TASKS, t.id)
    if times[i] ~= '-' then unexpire({ [times[i]] = { [t.id] = true } }) end
    for key = SUCCEEDED, CANCELLED do call('ZREM', of(t.head.kind, key), t.id) end
    t.calls = calls[i]
    again[#again + 1] = t
  end
end
add(again, false)
sendWakes()
return reply
