-- Agrees on the store key: returns what other replicas sealed, or stores what this one sealed.
--
-- KEYS     for each secret key of this replica: the store key, sealed with it
-- ARGV[1]  1 to store what is missing; 0 to store only if everything is missing
-- ARGV     from the second on, for each of KEYS: the key that this replica proposes, sealed
-- Result   the stored value of each of KEYS, or nil
local values, any = {}, false
for number, key in ipairs(KEYS) do
  values[number] = redis.call('GET', key)
  any = any or values[number]
end
if ARGV[1] == '1' or not any then
  for number, key in ipairs(KEYS) do
    if not values[number] then
      values[number] = ARGV[number + 1]
      redis.call('SET', key, values[number])
    end
  end
end
return values
