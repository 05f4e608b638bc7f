-- Spends one load of an environment's budget, or says how long to wait.
-- The window slides: at most ARGV[1] loads in any ARGV[2] milliseconds.
-- A time that lies too far ahead (the store's clock was set back) is deleted.
--
-- KEYS[1]  list: microseconds at which the last loads were spent, newest first
-- KEYS[2]  number: loads that upstream's bucket still allows until the key expires
-- KEYS[3]  exists while upstream wants no load
-- ARGV[1]  limit; 0 for none
-- ARGV[2]  milliseconds in which the limit counts
-- ARGV[3]  milliseconds: the longest that KEYS[2] and KEYS[3] may last
-- Result   0 if the load is spent; otherwise milliseconds to wait
-- Error    FOREIGN: a key never expires, so no gateway wrote it
local wait = redis.call('PTTL', KEYS[3])
if wait == -1 then return redis.error_reply('FOREIGN') end
if wait > tonumber(ARGV[3]) then
  redis.call('DEL', KEYS[3])
elseif wait > 0 then
  return wait
end
local allowance = redis.call('GET', KEYS[2])
if allowance then
  local left = redis.call('PTTL', KEYS[2])
  if left == -1 then return redis.error_reply('FOREIGN') end
  if left > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[2])
    allowance = false
  elseif tonumber(allowance) < 1 then
    return math.max(1, left)
  end
end
local limit = tonumber(ARGV[1])
if limit > 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  if redis.call('LLEN', KEYS[1]) >= limit then
    local oldest = tonumber(redis.call('LINDEX', KEYS[1], limit - 1))
    local wait = math.ceil((oldest - now) / 1000) + ARGV[2]
    if wait > tonumber(ARGV[2]) then
      redis.call('DEL', KEYS[1])
    elseif wait > 0 then
      return wait
    end
  end
  redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
  redis.call('LTRIM', KEYS[1], 0, limit - 1)
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if allowance then redis.call('DECR', KEYS[2]) end
return 0
