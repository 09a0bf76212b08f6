-- ARGV tag, consumer (of nobody)
-- Changes nothing. Calls every command that some page here calls, in a form without effect, and replies those that the
-- server refuses us: a right that only a rare path needs must be missed at the start, not there.
local consumer, nothing = ARGV[2], tag .. ':nothing'
local tries = {
  { 'GET', nothing }, { 'SET', nothing, '', 'XX' }, { 'EXPIRE', nothing, 1 }, { 'PERSIST', nothing },
  { 'HGET', nothing, 'f' }, { 'HEXISTS', nothing, 'f' }, { 'HMGET', nothing, 'f' }, { 'HDEL', nothing, 'f' },
  { 'HSET', jobs, 'f', '' }, { 'HINCRBY', jobs, 'f', 1 }, -- the stream is no hash
  { 'HSTRLEN', nothing, 'f' }, { 'ZADD', jobs, 'XX', 0, 'm' }, { 'ZREM', nothing, 'm' }, { 'ZRANGE', nothing, 0, 0 },
  { 'ZCARD', nothing }, { 'ZSCORE', nothing, 'm' }, { 'ZSCAN', nothing, 0 },
  { 'XADD', nothing, 'NOMKSTREAM', '*', 'f', '' }, { 'XLEN', nothing }, { 'XRANGE', nothing, '-', '+' },
  { 'XREVRANGE', nothing, '+', '-' }, { 'XDEL', nothing, '0-1' }, { 'XACK', nothing, GROUP, '0-1' },
  { 'XREADGROUP', 'GROUP', GROUP, consumer, 'STREAMS', nothing, '0' }, { 'XCLAIM', nothing, GROUP, consumer, 0, '0-1' },
  { 'XAUTOCLAIM', nothing, GROUP, consumer, 0, '0' }, { 'XPENDING', nothing, GROUP },
  { 'XINFO', 'GROUPS', nothing }, { 'XINFO', 'CONSUMERS', nothing, GROUP },
  { 'XGROUP', 'DELCONSUMER', nothing, GROUP, consumer },
  { 'MEMORY', 'USAGE', nothing }, { 'SPUBLISH', tag .. ':relay:' .. consumer, '' },
}
local refused = {}
for _, command in ipairs(tries) do
  local reply = redis.pcall(unpack(command))
  local err = type(reply) == 'table' and reply.err or ''
  -- as Redis 7 words it, and as Valkey does
  if string.find(err, 'NOPERM', 1, true) or string.find(err, 'The user executing the script', 1, true)
    or string.find(err, 'ACL failure', 1, true) then
    refused[#refused + 1] = string.lower(command[1])
  end
end
return refused
