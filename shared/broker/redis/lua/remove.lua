-- ARGV: number of tasks; for each: id, kind or 0 when it is not known, key number of its state, when it ended, when its record expires (each '-' when not known).
-- Returns nothing of use. A live task keeps everything: it has no final record, and is in none of these sets.
local drop, flushRecords = batch('HDEL')
local ended = {}
for i = 1, number() do
  ended[i] = readEnded(arg())
  drop(TASKS, ended[i].id)
end
flushRecords()
forgetEnded(ended)
return true
