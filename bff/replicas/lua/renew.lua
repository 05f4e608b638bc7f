-- Makes a claim last for some time from now on, if this replica still holds it; 0 releases it.
--
-- KEYS[1]  claim
-- ARGV[1]  token of this replica
-- ARGV[2]  milliseconds
-- Result   1 if this replica held the claim
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
