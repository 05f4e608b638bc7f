-- Takes requests from the window of a rate limit. The first taker starts the window.
-- A window that lasts too long (the store's clock was set back) is cut to its length.
--
-- KEYS[1]  number: requests taken in this window
-- ARGV[1]  limit of the window
-- ARGV[2]  requests wanted
-- ARGV[3]  length of a window in milliseconds
-- Result   {requests granted, requests left for other replicas, milliseconds the window lasts}
-- Error    FOREIGN: the key never expires, so no gateway wrote it
local stored = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left == -1 then return redis.error_reply('FOREIGN') end
local limit, used = tonumber(ARGV[1]), tonumber(stored or 0)
local granted = math.max(0, math.min(tonumber(ARGV[2]), limit - used))
if granted > 0 then redis.call('INCRBY', KEYS[1], granted) end
if left < 0 or left > tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  left = tonumber(ARGV[3])
end
return {granted, math.max(0, limit - used - granted), left}
