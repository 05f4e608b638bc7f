-- Announces revocations again, by one replica at a time, to the data for which it read the marker.
-- A store that lost its data since has another marker or none, so the replica begins again.
--
-- KEYS[1]  marker: "partial <name of the data>" or "complete <name of the data>"
-- KEYS[2]  name of the replica that republishes
-- KEYS[3]  stream of revocations
-- ARGV[1]  name of the data; it becomes the name if there is no marker
-- ARGV[2]  name of this replica
-- ARGV[3]  milliseconds for which this replica may republish without a pause
-- ARGV[4]  about how many announcements the stream keeps
-- ARGV[5]  1 if no others follow, so that the data is complete
-- ARGV[6]  the first revocation; the others follow
-- Result   {marker, 1 if the revocations were announced}
local marker = redis.call('GET', KEYS[1])
local name = marker and (string.match(marker, '^partial (%x+)$') or string.match(marker, '^complete (%x+)$'))
if not name then
  name = ARGV[1]
  marker = 'partial ' .. name
  redis.call('SET', KEYS[1], marker)
end
if name ~= ARGV[1] then return {marker, 0} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then return {marker, 0} end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
for number = 6, #ARGV do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'revocation', ARGV[number])
end
if ARGV[5] == '1' then
  marker = 'complete ' .. name
  redis.call('SET', KEYS[1], marker)
  redis.call('DEL', KEYS[2])
end
return {marker, 1}
