-- ARGV tag, consumer, ttl, dead_limit, then for each job: id, entry, attempt, status, fault, payload, predict µs,
-- given_up ('1': it becomes a dead letter too), traceback
-- Records results, fenced: only for the owner in the attempt it was given. Replies 1 (recorded) or 0 (refused) for each.
-- Repeating it is harmless: what this very attempt recorded before is answered with 1 again.
local consumer, ttl, dead_limit = ARGV[2], ARGV[3], ARGV[4]
local replies, entries = {}, {}
for at = 5, #ARGV, 9 do
  local job, attempt, status, payload = load_job(ARGV[at]), ARGV[at + 2], ARGV[at + 3], ARGV[at + 5]
  local mine = owned(job, consumer, attempt, ARGV[at + 1])
  if mine and job.status == 'processing' then
    if ARGV[at + 7] == '1' then add_dead_letter(job, payload, attempt, ARGV[at + 8], dead_limit) end
    finalize(job, status, ARGV[at + 4], payload, ttl, ARGV[at + 6])
    entries[#entries + 1] = job.entry
  end
  replies[#replies + 1] = mine and (job.status == 'processing' or job.status == status) and 1 or 0
end
if #entries > 0 then
  redis.call('XACK', jobs, GROUP, unpack(entries))
  redis.call('XDEL', jobs, unpack(entries))
end
flush()
return replies
