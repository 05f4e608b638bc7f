-- Runs each command that the gateway uses, so that a missing permission shows before it starts.
-- It leaves nothing: no other command can run meanwhile.
--
-- KEYS[1]  a key that nothing else uses
-- Result   1
local key = KEYS[1]
redis.call('INFO', 'server')
redis.call('TIME')
redis.call('EXISTS', key)
redis.call('SET', key, 1, 'PX', 1000)
redis.call('GET', key)
redis.call('PTTL', key)
redis.call('PEXPIRE', key, 1000)
redis.call('INCRBY', key, 1)
redis.call('DECR', key)
redis.call('DEL', key)
redis.call('LPUSH', key, 1)
redis.call('LLEN', key)
redis.call('LINDEX', key, 0)
redis.call('LTRIM', key, 0, 0)
redis.call('UNLINK', key)
redis.call('ZADD', key, 0, 1)
redis.call('ZCARD', key)
redis.call('ZREMRANGEBYSCORE', key, '-inf', '+inf')
redis.call('XADD', key, '*', 1, 1)
redis.call('XREVRANGE', key, '+', '-')
redis.call('XREAD', 'COUNT', 1, 'STREAMS', key, 0)
redis.call('DEL', key)
return 1
