-- KEYS jobs   ARGV tag, consumer, idle_ms ('' for oneself)
-- With a consumer: gives back whatever it was delivered and never started, then removes it if nothing is pending.
-- Without: removes consumers that have nothing pending and have been silent for idle_ms. In one script, because an
-- XGROUP DELCONSUMER that comes a moment too late would take a delivery with it. Replies the number removed.
local jobs, tag, consumer, idle = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local removed = 0
if redis.call('EXISTS', jobs) == 0 then return 0 end -- the server came back empty
if consumer ~= '' then
  for _, pending in ipairs(redis.call('XPENDING', jobs, GROUP, '-', '+', 1000, consumer)) do
    local entry = redis.call('XRANGE', jobs, pending[1], pending[1])[1]
    local id = entry and entry[2][2]
    local owned = id and redis.call('HMGET', tag .. ':job:' .. id, 'owner', 'entry')
    if not (owned and owned[1] == consumer and owned[2] == pending[1]) then
      drop_entry(jobs, pending[1])
      if id then redis.call('XADD', jobs, '*', 'id', id) end
    end
  end
end
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, GROUP)) do
  local seen = {}
  for at = 1, #info, 2 do seen[info[at]] = info[at + 1] end
  local leaving = seen.name == consumer or (consumer == '' and seen.idle > idle)
  if leaving and seen.pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', jobs, GROUP, seen.name)
    removed = removed + 1
  end
end
return removed
