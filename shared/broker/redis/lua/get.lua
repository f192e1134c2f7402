-- ARGV: whether only final records are asked for (1 or 0), number of ids, the ids. No kinds.
-- Returns for each: its final record; or { live value, unfinished children, who holds it or "" }; or false. At least for the first, and for no more when they are large.
local endedOnly, ids, live, at, parents, parentAt = arg() == '1', {}, {}, {}, {}, {}
for i = 1, number() do ids[i] = arg() end
local reply, bytes = fetchSome(TASKS, ids)
if endedOnly then return reply end
for i = 1, #reply do
  if not reply[i] then live[#live + 1], at[#at + 1] = ids[i], i end
end
local values = fetchSome(LIVE, live, bytes)
for i = #live, #values + 1, -1 do live[i] = nil end
local held = fetch(LIVE, holdFields(live))
for j, value in ipairs(values) do
  if value then
    reply[at[j]] = { value, '0', held[j] or '' }
    if split(value).calls > 0 then parents[#parents + 1], parentAt[#parentAt + 1] = live[j], at[j] end
  end
end
for j, count in ipairs(fetch(PENDING, parents)) do reply[parentAt[j]][2] = count or '0' end
if #live < #at then
  for i = #reply, at[#live + 1], -1 do reply[i] = nil end
end
return reply
