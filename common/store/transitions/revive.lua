-- ARGV tag, id, limit ('' to forget it), limit of bytes (of inputs)
-- Deletes a dead letter and, with a limit, queues its job again under its id with a fresh count of attempts.
-- Replies queued | forgotten | unknown | known (that id was submitted again since) | full.
local id, limit, most_bytes = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HEXISTS', dead_index, id) == 0 then return 'unknown' end
if not limit then
  remove_dead_letter(id)
  return 'forgotten'
end
local job = load_job(id)
local number = redis.call('ZCARD', unfinished)
if number >= limit then return 'full' end
if job.status and job.status ~= 'failed' then return 'known' end
local input = redis.call('XRANGE', dead, redis.call('HGET', dead_index, id), '+', 'COUNT', 1)[1][2][4]
if job.status and redis.call('HGET', job.key, 'input') ~= input then return 'known' end
local bytes = unfinished_bytes(number) + #input
if bytes > most_bytes then return 'full' end
redis.call('HSET', counts, 'bytes', text(bytes))
redis.call('ZADD', unfinished, now_text, id) -- before it changes: broken off from here on, it is the next sweep's to mend
redis.call('HDEL', job.key, 'owner', 'attempt', 'started', 'renewed', 'finished', 'error', 'fault', 'predict', 'deadline', 'alarm')
redis.call('HSET', job.key, 'input', input, 'status', 'queued', 'created', now_text)
redis.call('PERSIST', job.key)
if job.idem then redis.call('PERSIST', tag .. ':key:' .. job.idem) end
enqueue(job)
remove_dead_letter(id)
return 'queued'
