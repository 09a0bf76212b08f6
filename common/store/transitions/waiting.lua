-- ARGV tag, count, score, id (from behind the job of this score and id; both '': from the front), sentence (JSON), ttl
-- Goes over the jobs that wait, in the order in which they were accepted, until it has `count` of them. Lists them;
-- with a sentence ('' without one) it cancels them too.
-- Replies {score, id, then for each job {id, accepted (µs), attempts, bytes of its input}}: where to go on, '' at the end.
local LOOK_AT = 1000 -- in one call: those that run stand among those that wait
local count, from, after, sentence, ttl = tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local found = { '', '' }
local page = redis.call('ZRANGE', unfinished, from == '' and '-inf' or from, '+inf', 'BYSCORE', 'LIMIT', 0, LOOK_AT,
  'WITHSCORES')
if #page == 2 * LOOK_AT then found[1], found[2] = page[#page], page[#page - 1] end
for at = 1, #page, 2 do
  local id, score = page[at], page[at + 1]
  -- jobs of one score stand in the order of their ids
  local job = (score ~= from or id > after) and load_job(id)
  if job and job.status == 'queued' then
    found[#found + 1] = { id, job.created, job.attempt, redis.call('HSTRLEN', job.key, 'input') }
    if sentence ~= '' then end_early(job, 'cancelled', sentence, ttl) end
    if #found == 2 + count then
      found[1], found[2] = score, id
      break
    end
  end
end
flush()
return found
