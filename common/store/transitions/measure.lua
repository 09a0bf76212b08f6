-- ARGV tag
-- Changes nothing. Replies {unfinished, running, dead, consumers, µs the next job in line has waited ('' if none waits),
-- succeeded, failed, cancelled, expired, given up}; the last five ever since the server was empty.
local LOOK_AT = 32 -- of the entries in front this many may be left over from cancelled jobs, which nobody met yet

local running, consumers, last = 0, 0, '-'
local groups = redis.pcall('XINFO', 'GROUPS', jobs) -- an error while there is no stream
for _, group in ipairs(groups.err and {} or groups) do
  for at = 1, #group, 2 do
    if group[at] == 'pending' then running = group[at + 1] end
    if group[at] == 'consumers' then consumers = group[at + 1] end
    if group[at] == 'last-delivered-id' then last = '(' .. group[at + 1] end
  end
end

local function oldest()
  for _, entry in ipairs(redis.call('XRANGE', jobs, last, '+', 'COUNT', LOOK_AT)) do
    local job = load_job(entry[2][2])
    if job.live and job.entry == entry[1] then
      -- once the clock has stepped back, entries are numbered as if it had not
      local since = tonumber(string.match(entry[1], '%d+')) * 1000
      return since <= now and text(now - since) or waited(job, now)
    end
  end
  return ''
end

local numbers = totals()
return { numbers[1], running, redis.call('XLEN', dead), consumers, oldest(), unpack(numbers, 2) }
