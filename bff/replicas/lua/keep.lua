-- Stores what loads brought, each under all of its ids or under none, and releases their claims.
-- It stores nothing of a load whose claim was lost, or if a later load was faster.
--
-- KEYS     for each load: its claim, then the stored values; a value's head is
--          "bff1 <microseconds of its claim> "
-- ARGV     for each load:
--          number of its stored values
--          token of this replica
--          value
--          Unix milliseconds, by the store's clock, at which the value expires
--          microseconds at which the load was claimed
-- Result   for each load: 1 if stored; 0 if superseded by a later load or without the claim
local function keep(first, count, token, value, expires, now)
  if redis.pcall('GET', KEYS[first]) ~= token then return 0 end
  redis.call('DEL', KEYS[first])
  for number = first + 1, first + count do
    local stored = redis.pcall('GET', KEYS[number])
    local claimed = type(stored) == 'string' and string.match(stored, '^bff1 (%d+) ')
    if claimed and tonumber(claimed) > tonumber(now) then return 0 end
  end
  for number = first + 1, first + count do
    redis.call('SET', KEYS[number], value, 'PXAT', expires)
  end
  return 1
end

local result, first = {}, 1
for number = 1, #ARGV, 5 do
  local count = tonumber(ARGV[number])
  result[#result + 1] = keep(first, count, unpack(ARGV, number + 1, number + 4))
  first = first + 1 + count
end
return result
