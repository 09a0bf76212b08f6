-- KEYS jobs   ARGV tag, consumer, then for each job: id, entry, attempt
-- Renews the leases of jobs that are still this consumer's. Replies 1 (kept) or 0 (lost) for each. What this very
-- attempt has recorded is not lost: the reply to its finish is on the way.
-- JUSTID: XCLAIM must not count a delivery, and does not hand the entry out again.
local jobs, tag, consumer = KEYS[1], ARGV[1], ARGV[2]
local replies = {}
for at = 3, #ARGV, 3 do
  local id, entry, attempt = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local job = redis.call('HMGET', tag .. ':job:' .. id, 'status', 'owner', 'attempt', 'entry')
  local status = job[1]
  local mine = job[2] == consumer and job[3] == attempt and job[4] == entry
  -- one XCLAIM each: unpack() before another argument is cut to its first value
  if mine and status == 'processing' then redis.call('XCLAIM', jobs, GROUP, consumer, 0, entry, 'JUSTID') end
  replies[#replies + 1] = mine and (status == 'processing' or status == 'succeeded' or status == 'failed') and 1 or 0
end
return replies
