-- Put in front of every transition. KEYS[1] is the jobs stream and ARGV[1] the partition's tag in each of them.
-- All of a job's state is the hash {fP}:job:<id>; its fields:
--   input      JSON text, as the client sent it; gone from a final job that has a digest
--   digest     of the input's value, by which a repeat is known; only with KEEP_INPUT=false
--   status     queued | processing | succeeded | failed | cancelled | expired
--   created, started, finished   µs since the epoch, the server's clock
--   attempt    deliveries so far
--   owner      the processor that has it now
--   entry      its entry in the jobs stream, none while a retry waits for its time. Owner, attempt and entry together
--              are the fence: a job that was released and claimed again by the same processor has another entry, a
--              reclaimed one another attempt. An entry that is not its job's is left over and removed when met
--   renewed    when its lease was renewed while it had no entry that could tell: see `sweep`, µs since the epoch
--   deadline   µs since the epoch; past it the job is expired
--   alarm      '1' while the job stands in {fP}:alarms, a sorted set by the time when `ring` must look at it
--   idem       digest of its Idempotency-Key; {fP}:key:<digest> holds the job's id
--   trace      the trace context of the request that submitted it (common/tracing.py)
--   result     JSON text (succeeded)
--   error      JSON text of one sentence, and fault: why (failed, cancelled, expired)
--   predict    µs the model took
--   watchers   names of gateways to notify, space-separated; '+name' wants every change, 'name' the final one
-- The other keys are made here from the tag, not passed as KEYS: a claimed id is known to the script alone. All of
-- them share the slot of KEYS[1], which is what a cluster needs.

local INLINE = 8192 -- a final document above this many bytes is announced without its payload: the waiter reads it
local DEAD_BYTES = 64 * 1048576 -- of the server's memory for dead letters, inputs included
local EXPIRED = '"Prediction expired: its deadline passed before it was done."'

local jobs, tag = KEYS[1], ARGV[1]
local model = string.match(jobs, '[^:]+$')
local GROUP = string.match(tag, '^[^{]*') .. 'processors'
local counts, alarms = tag .. ':counts:' .. model, tag .. ':alarms:' .. model
local unfinished = tag .. ':unfinished:' .. model -- every job that is not final, by the time when it was accepted
local dead, dead_index = tag .. ':dead:' .. model, tag .. ':graves:' .. model -- dead letters, and the entry of each id

-- Lua prints large numbers as 1.76e+15
local function text(number)
  return string.format('%.0f', number)
end

-- While a cluster moves the slot key by key, it refuses to touch a key that is not here. This one never is, so then
-- every transition ends here, before it has changed anything.
redis.call('EXISTS', tag .. ':nothing')

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_text = text(now)

-- The fields that transitions decide on. `status` is false for a job that does not exist.
local function load_job(id)
  local key = tag .. ':job:' .. id
  local command = { 'HMGET', key, 'status', 'owner', 'attempt', 'entry', 'watchers', 'created', 'started', 'deadline',
    'alarm', 'idem', 'digest' }
  local fields = redis.pcall(unpack(command))
  if fields.err then
    -- what somebody else put under a job's key is no job, and must not keep a script from the others
    if string.find(fields.err, '^WRONGTYPE') then fields = {} else redis.call(unpack(command)) end
  end
  return {
    id = id, key = key, status = fields[1], owner = fields[2], attempt = tonumber(fields[3] or 0), entry = fields[4],
    watchers = fields[5], created = fields[6], started = fields[7], deadline = tonumber(fields[8]),
    alarm = fields[9], idem = fields[10], digest = fields[11], live = fields[1] == 'queued' or fields[1] == 'processing',
  }
end

local function owned(job, consumer, attempt, entry)
  return job.owner == consumer and job.attempt == tonumber(attempt) and job.entry == entry
end

-- µs from its acceptance until `time`, as text. The clock may have stepped back in between.
local function waited(job, time)
  return text(math.max(0, time - job.created))
end

local outbox = {} -- watcher → lines
local ended, finalized = {}, {} -- ids of the jobs that became final; status → how many of them came to it
local freed = 0 -- bytes of inputs that are unfinished no longer; {fP}:counts has the sum of those that are

-- Queue one line for each watcher. One line is: id status [fault queue_µs predict_µs payload]
local function notify(watchers, final, line)
  if not watchers then return end
  for all, name in string.gmatch(watchers, '(%+?)(%S+)') do
    if final or all == '+' then
      local lines = outbox[name]
      if lines then lines[#lines + 1] = line else outbox[name] = { line } end
    end
  end
end

-- The last thing every transition does. One message per watcher, whatever the number of jobs: a script has one
-- batch, a watcher one wake-up.
local function flush()
  for status, number in pairs(finalized) do
    redis.call('HINCRBY', counts, status, number)
  end
  if #ended > 0 then redis.call('ZREM', unfinished, unpack(ended)) end
  if freed ~= 0 then redis.call('HINCRBY', counts, 'bytes', -freed) end
  for name, lines in pairs(outbox) do
    redis.call('SPUBLISH', tag .. ':relay:' .. name, table.concat(lines, '\n'))
  end
end

-- {unfinished, succeeded, failed, cancelled, expired, given up}; all but the first ever since the server was empty.
local function totals()
  local numbers = redis.call('HMGET', counts, 'succeeded', 'failed', 'cancelled', 'expired', 'given_up')
  for at = 1, #numbers do numbers[at] = tonumber(numbers[at] or 0) end
  return { redis.call('ZCARD', unfinished), unpack(numbers) }
end

-- Bytes of the inputs of all unfinished jobs, of which there are `number`. What keys had that were deleted by hand is
-- forgotten when none is left.
local function unfinished_bytes(number)
  return number > 0 and tonumber(redis.call('HGET', counts, 'bytes') or 0) or 0
end

local function set_alarm(job, time)
  redis.call('ZADD', alarms, text(time), job.id)
  redis.call('HSET', job.key, 'alarm', '1')
end

-- Into the jobs stream, under a new entry.
local function enqueue(job)
  redis.call('HSET', job.key, 'entry', redis.call('XADD', jobs, '*', 'id', job.id))
end

local function drop_entry(entry)
  redis.call('XACK', jobs, GROUP, entry)
  redis.call('XDEL', jobs, entry)
end

-- From now on it and its Idempotency-Key are kept for `ttl` seconds; with 'NX', only if nothing has begun yet.
local function start_ttl(job, ttl, ...)
  redis.call('EXPIRE', job.key, ttl, ...)
  if job.idem then redis.call('EXPIRE', tag .. ':key:' .. job.idem, ttl, ...) end
end

-- The only way into a final state: stores it, starts the TTL, tells the watchers. `predict` is µs as text.
local function finalize(job, status, fault, payload, ttl, predict)
  if status == 'succeeded' then
    redis.call('HSET', job.key, 'status', status, 'result', payload, 'finished', now_text, 'predict', predict,
      'watchers', '')
  else
    redis.call('HSET', job.key, 'status', status, 'error', payload, 'finished', now_text, 'predict', predict,
      'watchers', '', 'fault', fault)
  end
  freed = freed + redis.call('HSTRLEN', job.key, 'input')
  if job.digest then redis.call('HDEL', job.key, 'input') end
  start_ttl(job, ttl)
  if job.alarm then redis.call('ZREM', alarms, job.id) end
  finalized[status], ended[#ended + 1] = (finalized[status] or 0) + 1, job.id
  if job.watchers and job.watchers ~= '' then
    local inline = #payload > INLINE and '' or payload
    local queued = waited(job, job.started or now)
    notify(job.watchers, true, table.concat({ job.id, status, fault, queued, predict, inline }, ' '))
  end
end

-- Cancelled or expired, wherever it is. A queued job's entry stays until a processor meets it: deleting an entry that
-- was never delivered makes the group's lag unknown for as long as it takes to be passed. A running job's processor
-- is notified through its own channel.
local function end_early(job, status, sentence, ttl)
  finalize(job, status, status, sentence, ttl, '0')
  if job.status == 'processing' then
    drop_entry(job.entry)
    notify(job.owner, true, job.id .. ' ' .. status)
  end
end

-- Back into the queue, at once or after `delay` µs; its old entry is the caller's to drop.
local function requeue(job, attempt, delay)
  redis.call('HSET', job.key, 'status', 'queued', 'attempt', attempt)
  redis.call('HDEL', job.key, 'owner', 'entry', 'started', 'renewed')
  if delay > 0 then
    set_alarm(job, math.min(now + delay, job.deadline or math.huge))
  else
    enqueue(job)
  end
  notify(job.watchers, false, job.id .. ' queued')
end

local function remove_dead_letter(id)
  local entry = redis.call('HGET', dead_index, id)
  if not entry then return end
  redis.call('XDEL', dead, entry)
  redis.call('HDEL', dead_index, id)
end

-- Keeps a job that was given up for people to look at: beyond its TTL, but no more than `limit` of them, nor DEAD_BYTES.
local function add_dead_letter(job, sentence, attempts, traceback, limit)
  remove_dead_letter(job.id)
  job.digest = nil -- it keeps its input: `revive` compares the two
  local input = redis.call('HGET', job.key, 'input')
  local entry = redis.call('XADD', dead, '*', 'id', job.id, 'input', input, 'error', sentence,
    'attempts', attempts, 'processor', job.owner or '', 'traceback', traceback)
  redis.call('HSET', dead_index, job.id, entry)
  redis.call('HINCRBY', counts, 'given_up', 1)
  local number = redis.call('XLEN', dead)
  while number > 1 and (number > tonumber(limit) or redis.call('MEMORY', 'USAGE', dead, 'SAMPLES', 0) > DEAD_BYTES) do
    local oldest = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', dead, oldest[1])
    if redis.call('HGET', dead_index, oldest[2][2]) == oldest[1] then redis.call('HDEL', dead_index, oldest[2][2]) end
    number = number - 1
  end
end
