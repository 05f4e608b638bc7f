-- One request a line of the file named first: method, path, then headers as name, value …, by tabs.
-- Second argument: "cycle" | "unique" | "half" (every second request has a new path);
-- third: milliseconds between two requests of one connection; then a seed, and the first line to send.
-- Functions are defined only where needed: without them wrk sends one request without Lua or timers.
local requests, lines, n, i, mode, pause = {}, {}, 0, 0, "cycle", 0

local function next_request()
  i = i + 1
  local l = lines[i % n + 1]
  if mode == "unique" or (mode == "half" and i % 2 == 0) then
    return wrk.format(l[1], l[2] .. "-" .. i .. "-" .. math.random(1e9), l[3])
  end
  return requests[i % n + 1]
end

local function next_pause()
  local ms = math.floor(pause)
  if math.random() < pause - ms then ms = ms + 1 end
  return ms
end

function init(args)
  math.randomseed(tonumber(args[4]))
  i = tonumber(args[5])
  for line in io.lines(args[1]) do
    local parts, headers = {}, {}
    for part in (line .. "\t"):gmatch("([^\t]*)\t") do parts[#parts + 1] = part end
    for k = 3, #parts - 1, 2 do headers[parts[k]] = parts[k + 1] end
    lines[#lines + 1] = { parts[1], parts[2], headers }
  end
  mode, pause, n = args[2], tonumber(args[3]), #lines
  for k, l in ipairs(lines) do requests[k] = wrk.format(l[1], l[2], l[3]) end
  if pause > 0 then delay = next_pause end
  if n == 1 and mode == "cycle" then
    wrk.method, wrk.path, wrk.headers = lines[1][1], lines[1][2], lines[1][3]
  else
    request = next_request
  end
end

function done(summary, latency)
  io.write(string.format("RESULT %f %d %d %d %d %d %d\n",
    summary.requests / (summary.duration / 1e6), latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), summary.requests, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
