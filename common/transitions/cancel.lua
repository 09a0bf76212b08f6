-- KEYS jobs   ARGV tag, id, sentence (JSON), ttl, only ('' or a gateway's name: cancel only if nobody but it watches)
-- Replies cancelled | finished | unknown | watched.
-- A queued job's entry stays where it is until a processor meets it: deleting an entry that was never delivered
-- makes the group's lag unknown for as long as it takes to be passed. A running job's processor is told through its own channel.
local jobs, tag, id, sentence, ttl, only = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = tag .. ':job:' .. id
local job = redis.call('HMGET', key, 'status', 'owner', 'entry', 'watchers', 'created', 'started')
local status, owner = job[1], job[2]
if not status then return 'unknown' end
if status ~= 'queued' and status ~= 'processing' then return 'finished' end
if only ~= '' and job[4] ~= only then return 'watched' end
local time = now()
settle(key, id, 'cancelled', 'cancelled', sentence, ttl, text(time), job[4], text((job[6] or time) - job[5]), '0')
if status == 'processing' then
  drop_entry(jobs, job[3])
  tell(owner, true, id .. ' cancelled')
end
announce(tag)
return 'cancelled'
