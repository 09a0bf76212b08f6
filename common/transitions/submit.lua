-- KEYS jobs   ARGV tag, limit, gateway, then for each job: id, input, watch ('1' or '')
-- Replies one word per job: queued | known (same id, same input) | conflict | full.
-- Repeating it is harmless. It may not run out of memory (no allow-oom): a job is stored whole or refused.
local jobs, tag, limit, gateway = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local job_keys = {}
for at = 4, #ARGV, 3 do job_keys[#job_keys + 1] = tag .. ':job:' .. ARGV[at] end
-- usually none of the jobs exists, and one call tells; `made`: an id may come twice in one call
local any_known, made = redis.call('EXISTS', unpack(job_keys)) > 0, {}
local size = redis.call('XLEN', jobs)
local created = text(now())
local replies = {}
for at = 4, #ARGV, 3 do
  local id, input = ARGV[at], ARGV[at + 1]
  local key = tag .. ':job:' .. id
  local known = (any_known or made[id]) and redis.call('HGET', key, 'input')
  local reply
  if known then
    reply = known == input and 'known' or 'conflict'
  elseif size >= limit then
    reply = 'full'
  else
    if ARGV[at + 2] == '1' then
      redis.call('HSET', key, 'input', input, 'status', 'queued', 'created', created, 'watchers', gateway)
    else
      redis.call('HSET', key, 'input', input, 'status', 'queued', 'created', created)
    end
    redis.call('XADD', jobs, '*', 'id', id)
    size = size + 1
    made[id] = true
    reply = 'queued'
  end
  replies[#replies + 1] = reply
end
return replies
