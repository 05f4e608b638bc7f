-- Stores how many loads upstream's bucket still allows.
-- Upstream's answers overtake one another: within one period (its end may differ by a second) the
-- lowest number counts, and a number of an earlier period is ignored.
--
-- KEYS[1]  number: loads that upstream's bucket still allows
-- ARGV[1]  loads allowed according to this answer
-- ARGV[2]  milliseconds until the bucket is filled again
-- Result   1 if stored, 0 if ignored
local stored = redis.call('GET', KEYS[1])
local sooner = redis.call('PTTL', KEYS[1]) - ARGV[2]
if stored and sooner > 1000 then return 0 end
if stored and sooner > -1000 and tonumber(stored) <= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
