-- KEYS jobs, dead   ARGV tag, consumer, ttl, dead_limit, then for each job: id, entry, attempt, status, fault, payload, queued µs, predict µs
-- Records results, fenced: only for the owner in the attempt it was given. Replies 1 (recorded) or 0 (refused) for each.
-- Repeating it is harmless: what this very attempt recorded before is answered with 1 again.
local jobs, dead, tag, consumer, ttl, dead_limit = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local replies, entries, time = {}, {}, text(now())
for at = 5, #ARGV, 8 do
  local id, entry, attempt, status = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local fault, payload = ARGV[at + 4], ARGV[at + 5]
  local key = tag .. ':job:' .. id
  local job = redis.call('HMGET', key, 'status', 'owner', 'attempt', 'entry', 'watchers')
  local mine = job[2] == consumer and job[3] == attempt and job[4] == entry
  if mine and job[1] == 'processing' then
    settle(key, id, status, fault, payload, ttl, time, job[5], ARGV[at + 6], ARGV[at + 7])
    entries[#entries + 1] = entry
    if fault == 'crash' or fault == 'timeout' then
      redis.call('XADD', dead, 'MAXLEN', '~', dead_limit, '*', 'id', id, 'error', payload, 'attempts', attempt)
    end
  end
  replies[#replies + 1] = mine and (job[1] == 'processing' or job[1] == status) and 1 or 0
end
if #entries > 0 then
  redis.call('XACK', jobs, GROUP, unpack(entries))
  redis.call('XDEL', jobs, unpack(entries))
end
announce(tag)
return replies
