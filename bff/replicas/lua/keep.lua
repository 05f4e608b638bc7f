-- Stores what a load brought, under all of its ids or under none, and releases the claim.
-- It stores nothing if the claim was lost, or if a later load was faster.
--
-- KEYS[1]  claim
-- KEYS     from the second on: the stored values; the head is "bff1 <microseconds of its claim> "
-- ARGV[1]  token of this replica
-- ARGV[2]  value
-- ARGV[3]  Unix milliseconds, by the store's clock, at which the value expires
-- ARGV[4]  microseconds at which the load was claimed
-- Result   1 if stored; 0 if superseded by a later load or without the claim
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
for number = 2, #KEYS do
  local stored = redis.call('GET', KEYS[number])
  local claimed = stored and string.match(stored, '^bff1 (%d+) ')
  if claimed and tonumber(claimed) > tonumber(ARGV[4]) then return 0 end
end
for number = 2, #KEYS do
  redis.call('SET', KEYS[number], ARGV[2], 'PXAT', ARGV[3])
end
return 1
