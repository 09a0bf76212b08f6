-- Put in front of every transition. All of a job's state is the hash {fP}:job:<id>; its fields:
--   input      JSON text, as the client sent it
--   status     queued | processing | succeeded | failed | cancelled | expired
--   created, started, finished   µs since the epoch, the server's clock
--   attempt    deliveries so far
--   owner      the processor that has it now
--   entry      its entry in the jobs stream; owner, attempt and entry together are the fence: a job that was
--              released and claimed again by the same processor has another entry, a reclaimed one another attempt
--   result     JSON text (succeeded)
--   error      JSON text of one sentence, and fault: why (failed, cancelled, expired)
--   predict    µs the model took
--   watchers   names of gateways to tell, space-separated; '+name' wants every change, 'name' the final one
-- Job keys are made here from ids, not passed as KEYS: a claimed id is known to the script alone. All of them
-- share the slot of KEYS[1], which is what a cluster needs.

local GROUP = 'processors'
local INLINE = 8192 -- a final document above this many bytes is announced without its payload: the waiter reads it

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Lua prints large numbers as 1.76e+15
local function text(number)
  return string.format('%.0f', number)
end

local outbox = {}

-- Queue one line for each watcher. One line is: id status [fault queue_µs predict_µs payload]
local function tell(watchers, final, line)
  if not watchers then return end
  for all, name in string.gmatch(watchers, '(%+?)(%S+)') do
    if final or all == '+' then
      local lines = outbox[name]
      if lines then lines[#lines + 1] = line else outbox[name] = { line } end
    end
  end
end

-- One message per watcher, whatever the number of jobs: a script has one batch, a watcher one wake-up.
local function announce(tag)
  for name, lines in pairs(outbox) do
    redis.call('SPUBLISH', tag .. ':relay:' .. name, table.concat(lines, '\n'))
  end
end

-- The only way into a final state: stores it, starts the TTL, tells the watchers.
-- `waited` and `predict` are µs as text, for the waiters; `time` is now, as text.
local function settle(key, id, status, fault, payload, ttl, time, watchers, waited, predict)
  if status == 'succeeded' then
    redis.call('HSET', key, 'status', status, 'result', payload, 'finished', time, 'predict', predict, 'watchers', '')
  else
    redis.call('HSET', key, 'status', status, 'error', payload, 'finished', time, 'predict', predict, 'watchers', '',
      'fault', fault)
  end
  redis.call('EXPIRE', key, ttl)
  if watchers and watchers ~= '' then
    local inline = #payload > INLINE and '' or payload
    tell(watchers, true, table.concat({ id, status, fault, waited, predict, inline }, ' '))
  end
end

local function drop_entry(jobs, entry)
  redis.call('XACK', jobs, GROUP, entry)
  redis.call('XDEL', jobs, entry)
end

-- Back into the queue, under a new entry.
local function requeue(key, jobs, id, attempt, watchers)
  redis.call('HSET', key, 'status', 'queued', 'attempt', attempt)
  redis.call('HDEL', key, 'owner', 'entry', 'started')
  redis.call('XADD', jobs, '*', 'id', id)
  tell(watchers, false, id .. ' queued')
end
