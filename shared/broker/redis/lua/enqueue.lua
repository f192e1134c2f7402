-- ARGV: whether to look for known ids (1 or 0); the new tasks.
-- Returns for each task 1 when it was added, 0 when its id is known.
local check = arg() == '1'
local tasks = newTasks()
add(tasks, check)
sendWakes()
local reply = {}
for i, t in ipairs(tasks) do reply[i] = t.created and 1 or 0 end
return reply
