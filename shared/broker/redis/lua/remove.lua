-- ARGV: number of tasks; for each: id, kind or 0 when it is not known, key number of its state, when it ended, when its record expires (each '-' when not known).
-- Returns { id, record, live value of each live task that has a record }. A live task keeps everything.
local drop, flushRecords = batch('HDEL')
local ids, tasks, ended, left, records, reply = {}, {}, {}, {}, {}, {}
for i = 1, number() do
  tasks[i] = readEnded(arg())
  ids[i] = tasks[i].id
end
local live = fetch(LIVE, ids)
for i, id in ipairs(ids) do
  if live[i] then left[#left + 1], records[#records + 1] = i, id
  else
    drop(TASKS, id)
    ended[#ended + 1] = tasks[i]
  end
end
flushRecords()
forgetEnded(ended)
for j, record in ipairs(fetch(TASKS, records)) do
  if record then
    for _, field in ipairs({ records[j], record, live[left[j]] }) do reply[#reply + 1] = field end
  end
end
return reply
