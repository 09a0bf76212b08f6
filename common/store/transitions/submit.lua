-- ARGV tag, limit, limit of bytes (of inputs), gateway, then for each job: id, input, watch ('1' or ''), deadline (µs from now or ''),
-- idem ('' or a digest), trace ('' or a trace context), digest (of the input, which is then dropped at the end; or '')
-- Replies for each job: queued | known (same id or key, same input) | conflict | full, then the id, which is another
-- one than was sent if the key is known.
-- Repeating it is harmless. It may not run out of memory (no allow-oom): a job is stored whole or refused.
local limit, most_bytes, gateway = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local FIELDS = 7
local job_keys = {}
for at = 5, #ARGV, FIELDS do job_keys[#job_keys + 1] = tag .. ':job:' .. ARGV[at] end
-- usually none of the jobs exists, and one call tells; `made`: an id may come twice in one call
local any_known, made, number = redis.call('EXISTS', unpack(job_keys)) > 0, {}, 0
local before, places = redis.call('ZCARD', unfinished), {}
local bytes_before, bytes = unfinished_bytes(before), 0
-- entries of cancelled jobs stay until a processor meets them, so without one they need a limit of their own
local entries = redis.call('XLEN', jobs)
local replies = {}

-- Whether the job exists, and whether that is its input.
local function look(id, input, digest)
  local there = redis.call('HMGET', tag .. ':job:' .. id, 'input', 'digest')
  return there[1] or there[2], there[1] == input or (there[2] and there[2] == digest)
end

for at = 5, #ARGV, FIELDS do
  local id, input, deadline, idem = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3]), ARGV[at + 4]
  local first = idem ~= '' and redis.call('GET', tag .. ':key:' .. idem)
  local digest = ARGV[at + 6]
  local known, same
  if first then
    known, same = look(first, input, digest)
    if known then id = first end
  elseif any_known or made[id] then
    known, same = look(id, input, digest)
  end
  local decision
  if known then
    decision = same and 'known' or 'conflict'
  elseif before + number >= limit or entries + number >= 2 * limit or bytes_before + bytes + #input > most_bytes then
    decision = 'full'
  else
    local job = { id = id, key = tag .. ':job:' .. id }
    local fields = { 'input', input, 'status', 'queued', 'created', now_text, 'entry',
      redis.call('XADD', jobs, '*', 'id', id) }
    if ARGV[at + 2] == '1' then
      fields[#fields + 1] = 'watchers'
      fields[#fields + 1] = gateway
    end
    if idem ~= '' then
      fields[#fields + 1] = 'idem'
      fields[#fields + 1] = idem
      redis.call('SET', tag .. ':key:' .. idem, id)
    end
    if ARGV[at + 5] ~= '' then
      fields[#fields + 1] = 'trace'
      fields[#fields + 1] = ARGV[at + 5]
    end
    if digest ~= '' then
      fields[#fields + 1] = 'digest'
      fields[#fields + 1] = digest
    end
    if deadline then
      fields[#fields + 1] = 'deadline'
      fields[#fields + 1] = text(now + deadline)
    end
    redis.call('HSET', job.key, unpack(fields))
    if deadline then set_alarm(job, now + deadline) end
    made[id] = true
    -- one µs each: in the order in which they came
    places[#places + 1], places[#places + 2] = text(now + number), id
    number, bytes = number + 1, bytes + #input
    decision = 'queued'
  end
  replies[#replies + 1] = decision
  replies[#replies + 1] = id
end
if number > 0 then redis.call('ZADD', unfinished, unpack(places)) end
-- also without a change: a WAIT or WAITAOF behind this call waits for a write of this connection, and what is known must
-- be as durable as what is new
redis.call('HSET', counts, 'bytes', text(bytes_before + bytes))
return replies
