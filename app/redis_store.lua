-- What a gateway does with a session in Redis, each operation at once or not at all, whatever becomes of the gateway.
--
-- KEYS[1]  the session, a hash:
--   key, prompt, counts   what `RedisStore` makes of them; `prompt_id` is another one for every prompt
--   forgotten             how many of the oldest pairs are here no more
--   fence                 another id whenever a turn begins or ends and whenever the history or the prompt changes
--   last                  the tokens of the operations that changed it last: one that is sent twice is done once
--   stop, stopped         the turn that was asked to stop; "<turn> <1: before its answer was complete>"
-- KEYS[2]  its pairs, a list; each begins with an id of 8 bytes
-- KEYS[3]  the turn that occupies it: the turn's token, for as long as its lease
-- KEYS[4]  the public ids of all sessions by the time of their end, a sorted set
--
-- Where Redis is full, it refuses the first command of a script that needs memory, and lets those after the first
-- write pass: so what needs memory comes first where the operation is to be refused, and last where it is not.
local session, pairs_of_it, turn, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local operation, public_id, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call
local clock = call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- All ids and tokens have as many bytes.
local ID_BYTES = 8
local REMEMBERED_TOKENS = 8

-- It lives at least as long as the lease of the turn that occupies it.
local function renew()
  local ms = math.max(ttl_ms, call('PTTL', turn))
  call('PEXPIRE', session, ms)
  call('PEXPIRE', pairs_of_it, ms)
  call('ZADD', index, now_ms + ms, public_id)
end

local function is_done(token)
  local last = call('HGET', session, 'last') or ''
  for at = 1, #last, ID_BYTES do
    if string.sub(last, at, at + ID_BYTES - 1) == token then
      return true
    end
  end
  return false
end

-- All that a reader lacks of a session, whose copy has so many pairs, the forgotten ones counted too; the last of them
-- has this id, and the prompt has that one.
local function look(total, last_pair_id, prompt_id)
  local about = call('HMGET', session, 'fence', 'key', 'counts', 'forgotten', 'prompt_id')
  local prompt = false
  if about[5] ~= prompt_id then
    prompt = call('HGET', session, 'prompt')
  end
  local forgotten = tonumber(about[4])
  local known = math.max(0, total - forgotten)
  if known > 0 then
    local pair = call('LINDEX', pairs_of_it, known - 1)
    if not pair or string.sub(pair, 1, ID_BYTES) ~= last_pair_id then
      known = 0
    end
  end
  local new = call('LRANGE', pairs_of_it, known, -1)
  return { 'ok', now_ms, about[1], about[2], about[3], about[4], about[5], prompt, known, new }
end

local function free(cancelled)
  call('DEL', turn)
  local stop = call('HGET', session, 'stop')
  if stop == ARGV[4] then
    call('HSET', session, 'stopped', stop .. ' ' .. cancelled)
  end
end

-- An operation that writes has a token, ARGV[4]. What is written is given as ARGV from a position on: how many fields
-- there are, their names and values, then pairs.
local function set_fields(position)
  local last = string.sub(ARGV[4] .. (call('HGET', session, 'last') or ''), 1, ID_BYTES * REMEMBERED_TOKENS)
  call('HSET', session, 'last', last, unpack(ARGV, position + 1, position + 2 * ARGV[position]))
end

local function append_pairs(position)
  for number = position + 2 * ARGV[position] + 1, #ARGV do
    call('RPUSH', pairs_of_it, ARGV[number])
  end
end

local operations = {}

-- ARGV[4] a token of this operation, [5] how many sessions there may be, [6] what is written.
function operations.add()
  if not is_done(ARGV[4]) then
    if call('ZCOUNT', index, now_ms, '+inf') >= tonumber(ARGV[5]) then
      local next_end = call('ZRANGEBYSCORE', index, now_ms, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      return { 'full', tonumber(next_end[2]) - now_ms }
    end
    set_fields(6)
    append_pairs(6)
  end
  renew()
  return { 'ok' }
end

function operations.require()
  return { call('EXISTS', session) == 1 and 'ok' or 'gone' }
end

-- ARGV[4..6] as for `look`.
function operations.read()
  if call('EXISTS', session) == 0 then
    return { 'gone' }
  end
  renew()
  return look(ARGV[4], ARGV[5], ARGV[6])
end

-- ARGV[4..6] as for `look`.
function operations.read_idle()
  if call('EXISTS', session) == 1 and call('EXISTS', turn) == 1 then
    return { 'busy' }
  end
  return operations.read()
end

-- ARGV[4] the turn's token, which is the fence then too, [5] until when it may be done, [6] its lease in ms, [7..9] as
-- for `look`.
function operations.begin()
  if call('EXISTS', session) == 0 then
    return { 'gone' }
  end
  local holder = call('GET', turn)
  if holder and holder ~= ARGV[4] then
    return { 'busy' }
  end
  if not holder then
    if now_ms > tonumber(ARGV[5]) then
      return { 'late', now_ms }
    end
    call('HSET', session, 'fence', ARGV[4])
    call('SET', turn, ARGV[4], 'PX', ARGV[6])
  end
  renew()
  return look(ARGV[7], ARGV[8], ARGV[9])
end

-- ARGV[4] the turn's token, or one of this operation, [5] until when it may be done, [6] the fence it has seen, which
-- for a turn is its token: it may have lost its lease, as long as nobody has done anything since, [7] the fence from
-- now on, [8] whether the turn was cancelled, [9] and [10] how many pairs go, the oldest and the newest, [11] what is
-- written.
function operations.write()
  local fence = call('HGET', session, 'fence')
  if not fence then
    return { 'gone' }
  end
  local holder = call('GET', turn)
  if not is_done(ARGV[4]) then
    if now_ms > tonumber(ARGV[5]) then
      return { 'late', now_ms }
    end
    if holder and holder ~= ARGV[4] and ARGV[6] ~= ARGV[4] then
      return { 'busy' }
    end
    if fence ~= ARGV[6] or (holder and holder ~= ARGV[4]) then
      return { 'changed' }
    end
    set_fields(11)
    call('HSET', session, 'fence', ARGV[7])
    if ARGV[10] ~= '0' then
      call('LTRIM', pairs_of_it, 0, -ARGV[10] - 1)
    end
    append_pairs(11)
    if ARGV[9] ~= '0' then
      call('LTRIM', pairs_of_it, ARGV[9], -1)
    end
  end
  if holder == ARGV[4] then
    free(ARGV[8])
  end
  renew()
  return { 'ok' }
end

-- ARGV[4] the turn's token, [5] whether it was cancelled, [6] the fence from now on.
function operations.release()
  if call('GET', turn) == ARGV[4] then
    free(ARGV[5])
  end
  local fence = call('HGET', session, 'fence')
  if not fence then
    return { 'gone' }
  end
  renew()
  if fence == ARGV[4] then
    call('HSET', session, 'fence', ARGV[6]) -- else a `hold` that is still on its way would occupy it once more
  end
  return { 'ok' }
end

-- ARGV[4] the turn's token, [5] its lease in ms.
function operations.hold()
  local fence, stop = unpack(call('HMGET', session, 'fence', 'stop'))
  if not fence then
    return { 'gone' }
  end
  local holder = call('GET', turn)
  if holder ~= ARGV[4] and (holder or fence ~= ARGV[4]) then
    return { 'lost' }
  end
  call('PEXPIRE', turn, ARGV[5])
  renew()
  if not holder then
    call('SET', turn, ARGV[4], 'PX', ARGV[5])
    renew()
  end
  return { stop == ARGV[4] and 'stop' or 'ok' }
end

-- ARGV[4] the sealed key that is to be there still, or nothing for any, [5] the new one.
function operations.replace_key()
  local key = call('HGET', session, 'key')
  if not key then
    return { 'gone' }
  end
  if ARGV[4] == '' then
    call('HSET', session, 'key', ARGV[5])
    renew()
  elseif key == ARGV[4] then
    call('HSET', session, 'key', ARGV[5])
  end
  return { 'ok' }
end

-- ARGV[4] the channel on which gateways are told which turn to stop.
function operations.cancel()
  if call('EXISTS', session) == 0 then
    return { 'gone' }
  end
  renew()
  local holder = call('GET', turn)
  if not holder then
    return { 'idle' }
  end
  call('HSET', session, 'stop', holder)
  call('PUBLISH', ARGV[4], holder)
  return { 'ok', holder }
end

-- ARGV[4] the turn's token.
function operations.outcome()
  if call('GET', turn) == ARGV[4] then
    return { 'running' }
  end
  return { 'ok', call('HGET', session, 'stopped') == ARGV[4] .. ' 0' and 0 or 1 }
end

-- ARGV[4] the channel on which gateways are told which turn to stop.
function operations.stop()
  if call('DEL', session) == 0 then
    return { 'gone' }
  end
  call('DEL', pairs_of_it)
  call('ZREM', index, public_id)
  local holder = call('GET', turn)
  if holder then
    call('PUBLISH', ARGV[4], holder)
  end
  return { 'ok', holder }
end

function operations.count()
  local removed = call('ZREMRANGEBYSCORE', index, '-inf', now_ms)
  local next_end = call('ZRANGEBYSCORE', index, now_ms, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return { 'ok', removed, call('ZCARD', index), next_end[2] and tonumber(next_end[2]) - now_ms or 0 }
end

return operations[operation]()
