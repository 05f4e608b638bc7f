-- Claims the one load of a session, and reads the stored value after that.
-- A claim that lasts too long (a foreign value, a clock that was set back) is cut to its length.
--
-- KEYS[1]  stored value
-- KEYS[2]  claim: the token of the replica that loads
-- ARGV[1]  token of this replica
-- ARGV[2]  milliseconds that a claim lasts
-- Result   {1 if claimed, stored value or nil, its PTTL, the store's time in microseconds}
local claimed = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
if not claimed then
  local left = redis.call('PTTL', KEYS[2])
  if left < 0 or left > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
end
local time = redis.call('TIME')
local value = redis.call('GET', KEYS[1])
return {claimed and 1 or 0, value, redis.call('PTTL', KEYS[1]), time[1] * 1000000 + time[2]}
