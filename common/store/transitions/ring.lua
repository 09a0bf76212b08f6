-- ARGV tag, ttl, limit
-- What is due: a job past its deadline is expired, a retry whose time has come goes into the queue. At most `limit` at once.
-- It also notices when the server's clock steps back, and moves what was to come with it.
-- Replies {µs until the next alarm, '' if there is none; unfinished jobs; jobs finished so far, each status summed; now}.
local ttl, limit = ARGV[2], ARGV[3]
local NOTE = 1000000 -- the time is noted so often (µs); a step back by less may go unnoticed, and does no harm

-- Whatever was delivered after what is now the present would be nobody's to take over until the clock has caught up, and
-- would count as idle for no time: its lease begins now, whoever has it.
local function restart_leases()
  local from, page = '-', nil
  repeat
    page = redis.pcall('XPENDING', jobs, GROUP, from, '+', 1000)
    if page.err then return end -- there is no stream or no group, so nobody has anything
    for _, pending in ipairs(page) do
      if pending[3] == 0 then redis.call('XCLAIM', jobs, GROUP, pending[2], 0, pending[1], 'JUSTID') end
      from = '(' .. pending[1]
    end
  until #page == 0
end

local function step_back(by)
  restart_leases()
  local due = redis.call('ZRANGE', alarms, 0, -1, 'WITHSCORES')
  for at = 1, #due, 2 do
    redis.call('ZADD', alarms, text(due[at + 1] - by), due[at])
    local job = load_job(due[at])
    if job.deadline then redis.call('HSET', job.key, 'deadline', text(job.deadline - by)) end
  end
end

local noted = tonumber(redis.call('HGET', counts, 'clock') or 0)
if now < noted then step_back(noted - now) end
if now < noted or now > noted + NOTE then redis.call('HSET', counts, 'clock', now_text) end

for _, id in ipairs(redis.call('ZRANGE', alarms, '-inf', now_text, 'BYSCORE', 'LIMIT', 0, limit)) do
  redis.call('ZREM', alarms, id)
  local job = load_job(id)
  job.alarm = false
  if job.live and job.deadline and job.deadline <= now then
    end_early(job, 'expired', EXPIRED, ttl)
  elseif job.live then
    if not job.entry then enqueue(job) end
    if job.deadline then set_alarm(job, job.deadline) else redis.call('HDEL', job.key, 'alarm') end
  end
end
flush()
local first = redis.call('ZRANGE', alarms, 0, 0, 'WITHSCORES')
local waiting_or_running, succeeded, failed, cancelled, expired = unpack(totals())
local finished = succeeded + failed + cancelled + expired
return { first[2] and text(math.max(0, first[2] - now)) or '', waiting_or_running, finished, now_text }
