-- KEYS jobs, dead   ARGV tag, consumer, count, max_attempts, ttl, dead_limit, gave_up (JSON sentence), after, idle_ms, cursor
-- Claims up to `count` entries for `consumer` and starts their jobs. Two sources:
--   idle_ms = ''  what the blocking XREADGROUP in front of this call just delivered (everything this consumer
--                 holds after entry `after`), then new entries up to the count
--   otherwise     entries that nobody has renewed for idle_ms, from XAUTOCLAIM's `cursor` on
-- Replies {after or cursor, then for each job: entry, id, attempt, input, queued µs}. Entries whose job is
-- gone or final are removed; a job delivered more than max_attempts times fails and goes to `dead`.
local jobs, dead, tag, consumer, count = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local max_attempts, ttl, dead_limit, gave_up = tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local after, idle, cursor = ARGV[8], ARGV[9], ARGV[10]

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

local started = { mark }
local time = now()
local time_text = text(time)
for _, entry in ipairs(entries) do
  local id = entry[2] and entry[2][2]
  local key = tag .. ':job:' .. (id or '')
  local job = id and redis.call('HMGET', key, 'status', 'input', 'attempt', 'created', 'watchers', 'owner')
  local status = job and job[1]
  if status ~= 'queued' and status ~= 'processing' then
    drop_entry(jobs, entry[1])
  else
    local attempt = tonumber(job[3] or 0)
    -- our own delivery, seen twice because the first reply was lost: the same attempt
    local again = idle == '' and status == 'processing' and job[6] == consumer
    if not again then attempt = attempt + 1 end
    if attempt > max_attempts then
      settle(key, id, 'failed', 'given_up', gave_up, ttl, time_text, job[5], text(time - job[4]), '0')
      redis.call('XADD', dead, 'MAXLEN', '~', dead_limit, '*', 'id', id, 'error', gave_up, 'attempts', attempt - 1)
      drop_entry(jobs, entry[1])
    else
      redis.call('HSET', key, 'status', 'processing', 'owner', consumer, 'attempt', attempt,
        'entry', entry[1], 'started', time_text)
      if status == 'queued' then tell(job[5], false, id .. ' processing') end
      local at = #started
      started[at + 1], started[at + 2], started[at + 3] = entry[1], id, attempt
      started[at + 4], started[at + 5] = job[2], text(time - job[4])
    end
  end
end
announce(tag)
return started
