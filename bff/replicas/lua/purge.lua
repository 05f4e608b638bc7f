-- Deletes the stored copy of a session and remembers the moment, so that loads begun earlier are
-- not stored later.
--
-- KEYS[1]  stored copy
-- KEYS[2]  number: microseconds of the last purge
-- ARGV[1]  milliseconds for which the purge is remembered
-- Result   the deleted copy, or nil
local time = redis.call('TIME')
local copy = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], string.format('%.0f', time[1] * 1000000 + time[2]), 'PX', ARGV[1])
return copy
