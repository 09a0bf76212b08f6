-- KEYS jobs   ARGV tag, then for each job: id, watcher ('' to look only, 'gateway' or '+gateway' to be told too)
-- Replies for each job {} (unknown) or {status, input, fault, payload, queued µs, predict µs}.
-- Looking and registering are one step: no change can fall between them.
local tag = ARGV[1]

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
  local id, watcher = ARGV[at], ARGV[at + 1]
  local key = tag .. ':job:' .. id
  local job = redis.call('HMGET', key, 'status', 'input', 'fault', 'result', 'error', 'created', 'started',
    'predict', 'watchers')
  local status, reply = job[1], {}
  if status then
    local waited = job[7] and text(job[7] - job[6]) or '0'
    reply = { status, job[2], job[3] or '', job[4] or job[5] or '', waited, job[8] or '0' }
    if watcher ~= '' and (status == 'queued' or status == 'processing') then
      local watchers = joined(job[9] or '', watcher)
      if watchers then redis.call('HSET', key, 'watchers', watchers) end
    end
  end
  replies[#replies + 1] = reply
end
return replies
