-- Starts a load: reads the stored value; unless that is an answer, claims the load and spends it.
-- The three are one step: a load is claimed only if the budget allows it, and spent only if claimed.
-- The window of the budget slides: at most ARGV[1] loads in any ARGV[2] milliseconds.
-- A time or a claim that lies too far ahead (the store's clock was set back) is deleted or cut.
--
-- KEYS[1]  list: microseconds at which the last loads were spent, newest first
-- KEYS[2]  number: loads that upstream's bucket still allows until the key expires
-- KEYS[3]  exists while upstream wants no load
-- KEYS[4]  stored value; its head is "bff1 <microseconds of its claim> "; none only to spend
-- KEYS[5]  claim: the token of the replica that loads
-- ARGV[1]  limit; 0 for none; empty to spend nothing
-- ARGV[2]  milliseconds in which the limit counts
-- ARGV[3]  milliseconds: the longest that KEYS[2] and KEYS[3] may last
-- ARGV[4]  token of this replica; empty to claim nothing, for the budget is known to be spent
-- ARGV[5]  milliseconds that a claim lasts
-- ARGV[6]  microseconds: a value whose load was claimed longer ago is too old
-- Result   {0 if claimed or spent; -1 if not, because there may be an answer now or soon; otherwise
--          milliseconds to wait, stored value or nil, its PTTL, the store's time in microseconds,
--          microseconds since the claim of the value}
-- Error    FOREIGN: a key never expires, so no gateway wrote it
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local value, left, age = false, -2, 0
local function result(state) return {state, value, left, now, age} end
if KEYS[4] then
  value = redis.pcall('GET', KEYS[4])
  if type(value) == 'table' then
    redis.call('DEL', KEYS[4])
    value = false
  end
  left = redis.call('PTTL', KEYS[4])
  local claimed = value and string.match(value, '^bff1 (%d+) ')
  if claimed then
    age = now - tonumber(claimed)
    if age <= tonumber(ARGV[6]) then return result(-1) end
  end
  local held = redis.call('PTTL', KEYS[5])
  if held ~= -2 then
    if held < 0 or held > tonumber(ARGV[5]) then redis.call('PEXPIRE', KEYS[5], ARGV[5]) end
    return result(-1)
  end
  if ARGV[4] == '' then return result(1) end
end
if ARGV[1] ~= '' then
  local wait = redis.call('PTTL', KEYS[3])
  if wait == -1 then return redis.error_reply('FOREIGN') end
  if wait > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[3])
  elseif wait > 0 then
    return result(wait)
  end
  local allowance = redis.call('GET', KEYS[2])
  if allowance then
    local ends = redis.call('PTTL', KEYS[2])
    if ends == -1 then return redis.error_reply('FOREIGN') end
    if ends > tonumber(ARGV[3]) then
      redis.call('DEL', KEYS[2])
      allowance = false
    elseif tonumber(allowance) < 1 then
      return result(math.max(1, ends))
    end
  end
  local limit = tonumber(ARGV[1])
  if limit > 0 then
    if redis.call('LLEN', KEYS[1]) >= limit then
      local oldest = tonumber(redis.call('LINDEX', KEYS[1], limit - 1))
      local wait = math.ceil((oldest - now) / 1000) + ARGV[2]
      if wait > tonumber(ARGV[2]) then
        redis.call('DEL', KEYS[1])
      elseif wait > 0 then
        return result(wait)
      end
    end
    redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
    redis.call('LTRIM', KEYS[1], 0, limit - 1)
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  if allowance then redis.call('DECR', KEYS[2]) end
end
if KEYS[5] then redis.call('SET', KEYS[5], ARGV[4], 'PX', ARGV[5]) end
return result(0)
