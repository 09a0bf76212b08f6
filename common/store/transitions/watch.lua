-- ARGV tag, then for each job: id, watcher ('' to look only, 'gateway' or '+gateway' to be notified too)
-- Replies for each job {} (unknown) or {status, input (nil: dropped), fault, payload, queued µs, predict µs, digest}.
-- Looking and registering are one step: no change can fall between them.

-- The watcher list with `watcher` in it, or nil if that changes nothing: '+name' covers 'name' and replaces it.
local function joined(watchers, watcher)
  local name, words = string.match(watcher, '%+?(.+)'), {}
  for word in string.gmatch(watchers, '%S+') do
    if word == watcher or word == '+' .. name then return nil end
    if word ~= name then words[#words + 1] = word end
  end
  words[#words + 1] = watcher
  return table.concat(words, ' ')
end

local replies = {}
for at = 2, #ARGV, 2 do
  local job, watcher, reply = load_job(ARGV[at]), ARGV[at + 1], {}
  if job.status then
    local fields = redis.call('HMGET', job.key, 'input', 'fault', 'result', 'error', 'predict')
    local queued = job.started and waited(job, job.started) or '0'
    reply = { job.status, fields[1], fields[2] or '', fields[3] or fields[4] or '', queued, fields[5] or '0',
      job.digest or '' }
    if watcher ~= '' and job.live then
      local watchers = joined(job.watchers or '', watcher)
      if watchers then redis.call('HSET', job.key, 'watchers', watchers) end
    end
  end
  replies[#replies + 1] = reply
end
return replies
