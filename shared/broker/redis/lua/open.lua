-- KEYS: the number of partitions; without the keys and arguments that other scripts share. ARGV: that of this process.
-- Returns the number that the store has, which is that of the process that asked first.
local known = redis.call('GET', KEYS[1])
if known then return known end
-- Frees nothing, and lets a Redis that is full take the number: its workers must be able to start, too.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return ARGV[1]
