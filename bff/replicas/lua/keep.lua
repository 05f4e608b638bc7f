-- Stores what a load brought, unless it was replaced meanwhile or the claim was lost.
--
-- KEYS[1]  stored value; its head is "bff1 <microseconds of its claim> "
-- KEYS[2]  claim; given only for the id that was claimed
-- ARGV[1]  value
-- ARGV[2]  Unix milliseconds, by the store's clock, at which the value expires
-- ARGV[3]  microseconds at which the load was claimed
-- ARGV[4]  token of this replica; given only with KEYS[2]
-- Result   1 if stored; 0 if superseded by a later load or without the claim
if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[4] then return 0 end
local stored = redis.call('GET', KEYS[1])
local claimed = stored and string.match(stored, '^bff1 (%d+) ')
if claimed and tonumber(claimed) > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 1
