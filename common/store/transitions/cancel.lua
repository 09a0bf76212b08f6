-- ARGV tag, id, sentence (JSON), ttl, only ('' or a gateway's name: cancel only if nobody but it watches)
-- Replies cancelled | finished | unknown | watched.
local id, sentence, ttl, only = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = load_job(id)
if not job.status then return 'unknown' end
if not job.live then return 'finished' end
if only ~= '' and job.watchers ~= only then return 'watched' end
end_early(job, 'cancelled', sentence, ttl)
flush()
return 'cancelled'
