-- ARGV tag, consumer, then for each job: id, entry, attempt, counted ('1': the attempt happened, '': it did not),
-- delay (µs; 0: another processor sees it at once)
-- Gives jobs back under a new entry. Replies 1 (released) or 0 (not ours) for each.
local consumer = ARGV[2]
local replies = {}
for at = 3, #ARGV, 5 do
  local job = load_job(ARGV[at])
  local mine = job.status == 'processing' and owned(job, consumer, ARGV[at + 2], ARGV[at + 1])
  if mine then
    drop_entry(job.entry)
    requeue(job, ARGV[at + 3] == '1' and job.attempt or job.attempt - 1, tonumber(ARGV[at + 4]))
  end
  replies[#replies + 1] = mine and 1 or 0
end
flush()
return replies
