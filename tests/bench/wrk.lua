-- One request a line of the file named first: method, path, then headers as name, value …, by tabs.
-- Second argument: "cycle" | "unique" | "half" (every second one of a path nobody asked for yet);
-- third: milliseconds between two requests of one connection; then a seed, and the line to begin at.
local requests, n, i, mode, pause, seen, at = {}, 0, 0, "cycle", 0, 0, 1
local lines = {}
function init(args)
  math.randomseed(tonumber(args[4]))
  i = tonumber(args[5]) -- where in the file to begin
  for line in io.lines(args[1]) do
    local parts, headers = {}, {}
    for part in (line .. "\t"):gmatch("([^\t]*)\t") do parts[#parts + 1] = part end
    for k = 3, #parts - 1, 2 do headers[parts[k]] = parts[k + 1] end
    lines[#lines + 1] = { parts[1], parts[2], headers }
  end
  mode, pause = args[2], tonumber(args[3])
  if mode ~= "unique" then
    for k, l in ipairs(lines) do requests[k] = wrk.format(l[1], l[2], l[3]) end
  end
  n = #lines
end
function request()
  i = i + 1
  local l = lines[i % n + 1]
  if mode == "unique" or (mode == "half" and i % 2 == 0) then
    return wrk.format(l[1], l[2] .. "-" .. i .. "-" .. math.random(1e9), l[3])
  end
  return requests[i % n + 1]
end
function delay()
  if pause == 0 then return 0 end
  local ms = math.floor(pause)
  if math.random() < pause - ms then ms = ms + 1 end
  return ms
end
function done(summary, latency)
  io.write(string.format("RESULT %f %d %d %d %d %d %d\n",
    summary.requests / (summary.duration / 1e6), latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), summary.requests, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
