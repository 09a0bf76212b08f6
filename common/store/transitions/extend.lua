-- ARGV tag, consumer, then for each job: id, entry, attempt
-- Renews the leases of jobs that are still this consumer's. Replies 1 (kept) or 0 (lost) for each. What this very
-- attempt has recorded is not lost: the reply to its finish is on the way.
-- JUSTID: XCLAIM must not count a delivery, and does not hand the entry out again.
local consumer = ARGV[2]
local replies = {}
for at = 3, #ARGV, 3 do
  local job = load_job(ARGV[at])
  local mine = owned(job, consumer, ARGV[at + 2], ARGV[at + 1])
  -- one XCLAIM each: unpack() before another argument is cut to its first value
  if mine and job.status == 'processing' then
    local held = redis.call('XCLAIM', jobs, GROUP, consumer, 0, job.entry, 'JUSTID')
    -- its entry was taken away by hand: nobody can take it over by that, and `sweep` must not while it is worked on
    if #held == 0 then redis.call('HSET', job.key, 'renewed', now_text) end
  end
  local kept = job.status == 'processing' or job.status == 'succeeded' or job.status == 'failed'
  replies[#replies + 1] = mine and kept and 1 or 0
end
return replies
