-- ARGV tag, consumer, count, max_attempts, ttl, dead_limit, after, idle_ms, cursor, latest
-- Claims up to `count` entries for `consumer` and starts their jobs. Two sources:
--   idle_ms = ''  what the blocking XREADGROUP in front of this call just delivered (everything this consumer
--                 holds after entry `after`), then new entries up to the count
--   otherwise     entries that nobody has renewed for idle_ms, from XAUTOCLAIM's `cursor` on; none if it is later than
--                 `latest` (µs, or ''): then the clock has jumped, and those of the living look as if they were left
-- Replies {after or cursor, now, then for each job: entry, id, attempt, input, queued µs, trace}. Entries whose job is gone,
-- final or queued elsewhere are removed; a job delivered more than max_attempts times fails and becomes a dead letter.
local consumer, count, max_attempts, ttl, dead_limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local after, idle, cursor, latest = ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
if latest and now > latest then return { cursor, now_text } end

local entries, mark = {}, after
if idle == '' then
  local function read(from, limit)
    local reply = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', limit, 'STREAMS', jobs, from)
    for _, entry in ipairs(reply and reply[1][2] or {}) do
      entries[#entries + 1] = entry
      mark = entry[1]
    end
  end
  read(after, count)
  if #entries < count then read('>', count - #entries) end
else
  local reply = redis.call('XAUTOCLAIM', jobs, GROUP, consumer, idle, cursor, 'COUNT', count)
  mark, entries = reply[1], reply[2]
end

local function give_up(job)
  local sentence = '"Prediction given up after ' .. max_attempts ..
    ' attempts: each time its processor died or fell silent."'
  add_dead_letter(job, sentence, job.attempt, '', dead_limit)
  finalize(job, 'failed', 'given_up', sentence, ttl, '0')
end

local started = { mark, now_text }
for _, entry in ipairs(entries) do
  local job = entry[2] and load_job(entry[2][2])
  if not job or not job.live or job.entry ~= entry[1] then
    drop_entry(entry[1])
  elseif job.deadline and job.deadline <= now then
    finalize(job, 'expired', 'expired', EXPIRED, ttl, '0')
    drop_entry(entry[1])
  else
    -- our own delivery, seen twice because the first reply was lost: the same attempt
    local again = idle == '' and job.status == 'processing' and job.owner == consumer
    local attempt = again and job.attempt or job.attempt + 1
    if attempt > max_attempts then
      give_up(job)
      drop_entry(entry[1])
    else
      redis.call('HSET', job.key, 'status', 'processing', 'owner', consumer, 'attempt', attempt, 'started', now_text)
      if job.status == 'queued' then notify(job.watchers, false, job.id .. ' processing') end
      local at, fields = #started, redis.call('HMGET', job.key, 'input', 'trace')
      started[at + 1], started[at + 2], started[at + 3] = entry[1], job.id, attempt
      started[at + 4], started[at + 5], started[at + 6] = fields[1], waited(job, now), fields[2] or ''
    end
  end
end
flush()
return started
