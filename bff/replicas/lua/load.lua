-- Starts loads of one budget: reads each stored value; unless it is an answer, claims and spends.
-- The three are one step: a load is claimed only if the budget allows it, and spent only if claimed.
-- The window of the budget slides: at most ARGV[1] loads in any ARGV[2] milliseconds.
-- `spend` returns 0, the milliseconds to wait instead, or an error. `start` returns the part of the
-- result for one load, or an error.
-- A time or a claim that lies too far ahead (the store's clock was set back) is deleted or cut.
--
-- KEYS[1]  list: microseconds at which the last loads were spent, newest first
-- KEYS[2]  number: loads that upstream's bucket still allows until the key expires
-- KEYS[3]  exists while upstream wants no load
-- KEYS     from the fourth on, two for each load; none only to spend:
--          stored value; its head is "bff1 <microseconds of its claim> "
--          claim: the token of the replica that loads
-- ARGV[1]  limit; 0 for none; empty to spend nothing
-- ARGV[2]  milliseconds in which the limit counts
-- ARGV[3]  milliseconds: the longest that KEYS[2] and KEYS[3] may last
-- ARGV[4]  milliseconds that a claim lasts
-- ARGV     from the fifth on, two for each load:
--          token of this replica; empty to claim nothing, for the budget is known to be spent
--          microseconds: a value whose load was claimed longer ago is too old
-- Result   the store's time in microseconds; then for each load {0 if claimed and spent; -1 if not,
--          because there may be an answer now or soon; otherwise milliseconds to wait, stored value
--          or nil, its PTTL, microseconds since the claim of the value}; without loads 0 if spent,
--          or milliseconds to wait
-- Error    FOREIGN: a key of the budget never expires, so no gateway wrote it
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function spend()
  if ARGV[1] == '' then return 0 end
  local wait = redis.call('PTTL', KEYS[3])
  if wait == -1 then return redis.error_reply('FOREIGN') end
  if wait > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[3])
  elseif wait > 0 then
    return wait
  end
  local allowance = redis.call('GET', KEYS[2])
  if allowance then
    local ends = redis.call('PTTL', KEYS[2])
    if ends == -1 then return redis.error_reply('FOREIGN') end
    if ends > tonumber(ARGV[3]) then
      redis.call('DEL', KEYS[2])
      allowance = false
    elseif tonumber(allowance) < 1 then
      return math.max(1, ends)
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
        return wait
      end
    end
    redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
    redis.call('LTRIM', KEYS[1], 0, limit - 1)
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  if allowance then redis.call('DECR', KEYS[2]) end
  return 0
end

local function start(stored, claim, token, fresh)
  local value = redis.pcall('GET', stored)
  if type(value) == 'table' then
    redis.call('DEL', stored)
    value = false
  end
  local left, age = redis.call('PTTL', stored), 0
  local claimed = value and string.match(value, '^bff1 (%d+) ')
  if claimed then
    age = now - tonumber(claimed)
    if age <= tonumber(fresh) then return {-1, value, left, age} end
  end
  local held = redis.call('PTTL', claim)
  if held ~= -2 then
    if held < 0 or held > tonumber(ARGV[4]) then redis.call('PEXPIRE', claim, ARGV[4]) end
    return {-1, value, left, age}
  end
  if token == '' then return {1, value, left, age} end
  local wait = spend()
  if type(wait) == 'table' then return wait end
  if wait == 0 then redis.call('SET', claim, token, 'PX', ARGV[4]) end
  return {wait, value, left, age}
end

if #KEYS == 3 then
  local wait = spend()
  return type(wait) == 'table' and wait or {now, wait}
end
local result = {now}
for number = 4, #KEYS, 2 do
  local load = start(KEYS[number], KEYS[number + 1], ARGV[number + 1], ARGV[number + 2])
  if load.err then return load end
  result[#result + 1] = load
end
return result
