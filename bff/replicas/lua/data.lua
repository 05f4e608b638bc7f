-- Reads the marker of the store's data, and begins new data if the store lost some of it.
-- A store that was restored from older data, or a replica of it that was promoted, has another run
-- id than the data's name. A store that evicts may lose one stream and keep the marker.
-- A marker that no gateway wrote counts as none: no replica could read it, and all would wait.
--
-- KEYS[1]  marker: "partial <name of the data>" or "complete <name of the data>"
-- KEYS     from the second on: the streams of the data; each begins with a message about it
-- ARGV[1]  name of this replica, for the name of new data
-- Result   the marker
local run = string.lower(string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or '')
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' then marker = '' end
local state, name = string.match(marker, '^(%l+) ([0-9a-f]+)$')
if state ~= 'partial' and state ~= 'complete' then name = nil end
local whole = name and string.sub(name, #name - #run + 1) == run
for number = 2, #KEYS do whole = whole and redis.call('EXISTS', KEYS[number]) == 1 end
if whole then return marker end
local time = redis.call('TIME')
name = ARGV[1] .. string.format('%08x%05x', time[1], time[2]) .. run
for number = 2, #KEYS do redis.call('XADD', KEYS[number], '*', 'data', name) end
redis.call('SET', KEYS[1], 'partial ' .. name)
return 'partial ' .. name
