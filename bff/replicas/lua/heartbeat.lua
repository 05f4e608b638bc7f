-- Registers a replica as running and counts the replicas that are running.
-- Times are the store's, so the replicas' clocks need not agree.
--
-- KEYS[1]  sorted set: replica name -> milliseconds of its last heartbeat
-- ARGV[1]  name of this replica; empty if it only looks, and no replica is to count it
-- ARGV[2]  milliseconds after which a replica without a heartbeat is dropped
-- Result   number of replicas, this one included
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local looks = ARGV[1] == ''
redis.call('ZADD', KEYS[1], looks and 0 or now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + ARGV[2], '+inf')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1]) + (looks and 1 or 0)
