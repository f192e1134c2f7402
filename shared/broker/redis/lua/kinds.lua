-- KEYS: the set of kinds; without the keys and arguments that other scripts share. ARGV: kinds whose tasks may come from now on.
-- Returns all that were ever named.
if #ARGV > 0 then redis.call('SADD', KEYS[1], unpack(ARGV)) end
return redis.call('SMEMBERS', KEYS[1])
