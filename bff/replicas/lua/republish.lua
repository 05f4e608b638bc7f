-- Announces revocations again, by one replica at a time, to the data for which it read the marker.
-- A store that lost its data since has another marker or none, so the replica begins again.
-- A turn that lasts too long, or without end, was begun by no gateway or before the store's clock
-- was set back.
--
-- KEYS[1]  marker: "partial <name of the data>" or "complete <name of the data>"
-- KEYS[2]  name of the replica that republishes
-- KEYS[3]  stream of revocations
-- ARGV[1]  name of the data
-- ARGV[2]  name of this replica
-- ARGV[3]  milliseconds for which this replica may republish without a pause
-- ARGV[4]  about how many announcements the stream keeps
-- ARGV[5]  "part"; "last" if the data is complete with this
-- ARGV     from the sixth on: the revocations, if there are any
-- Result   {marker, 1 if the revocations were announced}
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' then marker = '' end
local name = string.match(marker, '^%l+ (%x+)$')
if name ~= ARGV[1] then return {marker, 0} end
local left = redis.call('PTTL', KEYS[2])
if left > 0 and left <= tonumber(ARGV[3]) and redis.pcall('GET', KEYS[2]) ~= ARGV[2] then
  return {marker, 0}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
for number = 6, #ARGV do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'revocation', ARGV[number])
end
if ARGV[5] == 'last' then
  marker = 'complete ' .. name
  redis.call('SET', KEYS[1], marker)
  redis.call('DEL', KEYS[2])
end
return {marker, 1}
