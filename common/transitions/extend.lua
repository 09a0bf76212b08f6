-- KEYS jobs   ARGV tag, consumer, then for each job: id, entry, attempt
-- Renews the leases of jobs that are still this consumer's, in this attempt. Replies 1 (kept) or 0 (lost) for each.
-- JUSTID: XCLAIM must not count a delivery, and does not hand the entry out again.
local jobs, tag, consumer = KEYS[1], ARGV[1], ARGV[2]
local replies = {}
for at = 3, #ARGV, 3 do
  local job = redis.call('HMGET', tag .. ':job:' .. ARGV[at], 'status', 'owner', 'attempt', 'entry')
  local kept = job[1] == 'processing' and job[2] == consumer and job[3] == ARGV[at + 2] and job[4] == ARGV[at + 1]
  replies[#replies + 1] = kept and 1 or 0
  if kept then redis.call('XCLAIM', jobs, GROUP, consumer, 0, ARGV[at + 1], 'JUSTID') end
end
return replies
