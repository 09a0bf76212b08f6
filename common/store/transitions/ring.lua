-- ARGV tag, ttl, limit
-- What is due: a job past its deadline is expired, a retry whose time has come goes into the queue. At most `limit` at once.
-- Replies {µs until the next alarm, '' if there is none; unfinished jobs; jobs finished so far, each status summed}.
local ttl, limit = ARGV[2], ARGV[3]
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
return { first[2] and text(math.max(0, first[2] - now)) or '', waiting_or_running, finished }
