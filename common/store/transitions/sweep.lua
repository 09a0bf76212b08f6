-- ARGV tag, ttl, silent (µs), cursor ('' to begin), count
-- Mends what no transition leaves behind: a queue that was emptied by hand, a key that was deleted, a transition that the
-- server broke off in the middle. A job without a place in the queue gets a new one; one that is gone or final is
-- unfinished no longer; an entry that nobody will come to is removed. One sweep goes over all unfinished jobs, about `count` in each call, then over the stream if
-- that has more; none begins earlier than `silent` after another.
-- Replies {cursor to go on with, '' at the end; how many jobs were queued again}.
local ttl, silent, cursor, count = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]

-- not `>`: the clock may have stepped back
local function long_ago(time)
  return math.abs(now - tonumber(time or 0)) > silent
end

if cursor == '' then
  if not long_ago(redis.call('HGET', counts, 'swept')) then return { '', 0 } end
  redis.call('HSET', counts, 'swept', now_text)
  cursor = 'job 0'
end

local function parts(entry)
  local ms, number = string.match(entry, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

local delivered_ms, delivered_number = 0, 0
local groups = redis.pcall('XINFO', 'GROUPS', jobs) -- an error while there is no stream
for _, group in ipairs(groups.err and {} or groups) do
  for at = 1, #group, 2 do
    if group[at] == 'last-delivered-id' then delivered_ms, delivered_number = parts(group[at + 1]) end
  end
end

-- Whether a processor will come to this entry of the stream, or has it.
local function is_in_line(entry)
  local ms, number = parts(entry)
  return ms > delivered_ms or (ms == delivered_ms and number > delivered_number)
    or #redis.call('XPENDING', jobs, GROUP, entry, entry, 1) > 0
end

-- Whether a processor will come to the job, now or at its time.
local function has_place(job)
  if not job.entry then
    local due = redis.call('ZSCORE', alarms, job.id)
    return due and tonumber(due) < (job.deadline or math.huge)
  end
  return #redis.call('XRANGE', jobs, job.entry, job.entry) > 0 and is_in_line(job.entry)
end

local again = 0
local function mend(id)
  local job = load_job(id)
  if not job.live then
    if job.status then
      freed = freed + redis.call('HSTRLEN', job.key, 'input')
      start_ttl(job, ttl, 'NX')
    end
    ended[#ended + 1] = id -- removed last: until then the next sweep finds it
  elseif has_place(job) then
    if job.deadline and not redis.call('ZSCORE', alarms, id) then set_alarm(job, job.deadline) end
  elseif job.status == 'queued' or long_ago(redis.call('HGET', job.key, 'renewed') or job.started) then
    if job.entry then drop_entry(job.entry) end
    if job.status == 'queued' then enqueue(job) else requeue(job, job.attempt, 0) end
    again = again + 1
  end
end

local part, from = string.match(cursor, '(%S+) (%S+)')
local following
if part == 'job' then
  local page = redis.call('ZSCAN', unfinished, from, 'COUNT', count)
  for at = 1, #page[2], 2 do mend(page[2][at]) end
  if page[1] ~= '0' then following = 'job ' .. page[1]
  elseif redis.call('XLEN', jobs) > redis.call('ZCARD', unfinished) - #ended then following = 'entry -' end
else
  local page = redis.call('XRANGE', jobs, from, '+', 'COUNT', count)
  for _, entry in ipairs(page) do
    local job = load_job(entry[2][2])
    if job.live and job.entry == entry[1] then
      if redis.call('ZADD', unfinished, 'NX', job.created, job.id) == 1 then
        freed = freed - redis.call('HSTRLEN', job.key, 'input')
      end
    elseif not is_in_line(entry[1]) then
      drop_entry(entry[1])
    end
  end
  if #page == tonumber(count) then following = 'entry (' .. page[#page][1] end
end
flush()
if redis.call('ZCARD', unfinished) == 0 then redis.call('HSET', counts, 'bytes', 0) end -- see `unfinished_bytes`
return { following or '', again }
