-- ARGV tag, consumer, idle_ms ('' for oneself)
-- With a consumer: gives back whatever it still holds (delivered or started with nobody left to hear of it), without
-- counting an attempt, then removes it. Without: removes consumers that hold nothing and have been silent for idle_ms.
-- In one script, because an XGROUP DELCONSUMER that comes a moment too late would take a delivery with it.
-- Replies the number removed.
local consumer, idle = ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', jobs) == 0 then return 0 end -- the server came back empty

local function give_back(entry_id)
  local entry = redis.call('XRANGE', jobs, entry_id, entry_id)[1]
  drop_entry(entry_id)
  if not entry then return end
  local job = load_job(entry[2][2])
  if job.entry ~= entry_id then return end
  if job.status == 'processing' and job.owner == consumer then
    requeue(job, job.attempt - 1, 0)
  elseif job.status == 'queued' then
    enqueue(job)
  end
end

local held = {}
repeat
  for _, pending in ipairs(held) do give_back(pending[1]) end
  held = consumer ~= '' and redis.call('XPENDING', jobs, GROUP, '-', '+', 1000, consumer) or {}
until #held == 0

local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, GROUP)) do
  local seen = {}
  for at = 1, #info, 2 do seen[info[at]] = info[at + 1] end
  local leaving = seen.name == consumer or (consumer == '' and seen.idle > idle)
  if leaving and seen.pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', jobs, GROUP, seen.name)
    removed = removed + 1
  elseif consumer == '' and seen.pending == 0 and seen.idle == 0 then
    -- the clock may have stepped back since it was last seen, which would make it idle for no time: it is seen now
    redis.call('XREADGROUP', 'GROUP', GROUP, seen.name, 'COUNT', 1, 'STREAMS', jobs, '0')
  end
end
flush()
return removed
