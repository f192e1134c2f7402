-- ARGV: number of ids, the ids. No kinds.
-- Returns for each: its final record; or { live value, unfinished children }; or false.
local ids, live, at, parents, parentAt = {}, {}, {}, {}, {}
for i = 1, number() do ids[i] = arg() end
local reply = fetch(TASKS, ids)
for i, id in ipairs(ids) do
  if not reply[i] then live[#live + 1], at[#at + 1] = id, i end
end
for j, value in ipairs(fetch(LIVE, live)) do
  if value then
    reply[at[j]] = { value, '0' }
    if split(value).calls > 0 then parents[#parents + 1], parentAt[#parentAt + 1] = live[j], at[j] end
  end
end
for j, count in ipairs(fetch(PENDING, parents)) do reply[parentAt[j]][2] = count or '0' end
return reply
