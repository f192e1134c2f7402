-- KEYS: the seven of partitionKeys, then that of pings; without the arguments that other scripts share.
-- Fails where a creation would: when one of the keys is of another type, when Redis is full, and on one that is read-only.
for i, read in ipairs({ 'HLEN', 'HLEN', 'HLEN', 'ZCARD', 'STRLEN', 'ZCARD', 'HLEN' }) do redis.call(read, KEYS[i]) end
redis.call('SET', KEYS[8], '', 'PX', 1000)
return 1
