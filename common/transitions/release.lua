-- KEYS jobs   ARGV tag, consumer, then for each job: id, entry, attempt, counted ('1': the attempt happened, '': it did not)
-- Gives jobs back under a new entry, so that another processor sees them at once. Replies 1 (released) or 0 (not ours).
local jobs, tag, consumer = KEYS[1], ARGV[1], ARGV[2]
local replies = {}
for at = 3, #ARGV, 4 do
  local id, entry, attempt = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key = tag .. ':job:' .. id
  local job = redis.call('HMGET', key, 'status', 'owner', 'attempt', 'entry', 'watchers')
  local mine = job[1] == 'processing' and job[2] == consumer and job[3] == attempt and job[4] == entry
  if mine then
    drop_entry(jobs, entry)
    if ARGV[at + 3] ~= '1' then attempt = attempt - 1 end
    requeue(key, jobs, id, attempt, job[5])
  end
  replies[#replies + 1] = mine and 1 or 0
end
announce(tag)
return replies
