-- Says whether a session was purged since a load began.
--
-- KEYS[1]  number: microseconds of the last purge
-- ARGV[1]  microseconds at which the load was claimed
-- Result   1 if it was purged, otherwise 0
-- Error    FOREIGN: the key never expires, so no gateway wrote it
local purged = redis.call('GET', KEYS[1])
if not purged then return 0 end
if redis.call('PTTL', KEYS[1]) == -1 then return redis.error_reply('FOREIGN') end
return tonumber(purged) >= tonumber(ARGV[1]) and 1 or 0
