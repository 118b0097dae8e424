"""The referee's rules: each transition of a job or a round as one Lua script, atomic on the Redis server.

A script names the fence that it expects and answers with a word: `ok`, `duplicate`, `late`, `stranger`, `fenced`,
`lost` or `conflict`. Time is Redis's. `tests/simulation/model.py` holds the same rules in Python, and a test holds the
two together. `KEYS[1]` is the job's hash; of a round, `KEYS[2]` to `KEYS[5]` are its hash, its accepted, its rejected
and its cohort, and of one that ends `KEYS[6]` is the hash of the totals. No step of an open round looks at more of it
than the clients that it is about.
"""

from shared.redis.client import Script

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

#: A job's step begins by asking whether the caller still owns the job.
_FENCED = """
local fence = redis.call('HGET', KEYS[1], 'fence')
if not fence then return 'lost' end
if fence ~= ARGV[1] then return 'fenced' end
"""

_IS_LIVE = """
local function live(status) return status == 'queued' or status == 'waiting' or status == 'running' end
"""

#: The step that ends a round adds what it came to: names and amounts are ARGV[3] on in turn, all of them integers.
_COUNT = """
local function count(totals)
  for i = 3, #ARGV, 2 do redis.call('HINCRBY', totals, ARGV[i], ARGV[i + 1]) end
end
"""

CREATE = Script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'duplicate' end
redis.call('HSET', KEYS[1], 'status', 'queued', 'detail', 'waiting for an aggregator', 'round', -1,
  'rounds', ARGV[2], 'fence', 0, 'lease', 0, 'created', now, 'announced', now, 'wanted', 'running')
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 'ok'
"""
)

REMOVE = Script(
    _IS_LIVE
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if status and live(status) then return status end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 'ok'
"""
)

#: The fence is Redis's time in ms, or one more than the last: it grows even where Redis has forgotten the last one.
CLAIM = Script(
    _NOW
    + _IS_LIVE
    + """
local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease', 'fence')
if not job[1] then return 'unknown' end
if not live(job[1]) then return job[1] end
if tonumber(job[3]) > now then return 'owned by ' .. job[2] end
local fence = math.max(now, tonumber(job[4]) + 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'detail', '', 'owner', ARGV[1], 'lease', now + ARGV[2], 'fence', fence)
redis.call('HSETNX', KEYS[1], 'started', now)
redis.call('HINCRBY', KEYS[1], 'claims', 1)
return fence
"""
)

RENEW = Script(
    _NOW
    + _FENCED
    + """
redis.call('HSET', KEYS[1], 'lease', now + ARGV[2])
return redis.call('HMGET', KEYS[1], 'wanted', 'reason')
"""
)

#: Given up in order, a claim is none of those that ended in a death.
RELEASE = Script(
    _FENCED
    + """
local status, detail = ARGV[2], ARGV[3]
if status == 'paused' and redis.call('HGET', KEYS[1], 'wanted') ~= 'paused' then  -- resumed in this moment
  status, detail = 'queued', 'waiting for an aggregator'
end
redis.call('HSET', KEYS[1], 'status', status, 'detail', detail, 'lease', 0)
local claims = tonumber(redis.call('HGET', KEYS[1], 'claims') or 0)
if claims > 0 then redis.call('HSET', KEYS[1], 'claims', claims - 1) end
return status
"""
)

#: What nobody owns and somebody should: never begun, though its start was announced a while ago, or left by its owner.
#: The first answer is the milliseconds until another lease runs out, or -1.
ORPHANS = Script(
    _NOW
    + _IS_LIVE
    + """
local found, soonest = {-1}, -1
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local job = redis.call('HMGET', ARGV[1] .. id, 'status', 'fence', 'lease', 'announced')
  if job[1] and live(job[1]) then
    local free = tonumber(job[3])
    if job[1] == 'queued' and free == 0 and tonumber(job[2]) < tonumber(job[4] or 0) then
      free = job[4] + ARGV[2]
    end
    if free <= now then
      found[#found + 1] = id
    elseif soonest < 0 or free - now < soonest then
      soonest = free - now
    end
  end
end
found[1] = math.ceil(soonest)
return found
"""
)

#: Nobody owns a live job any more: what its owner knows of it, Redis may not.
DROP_OWNERS = Script(
    _NOW
    + _IS_LIVE
    + """
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = ARGV[1] .. id
  local job = redis.call('HMGET', key, 'status', 'fence')
  if job[1] and live(job[1]) and tonumber(job[2]) > 0 and tonumber(job[2]) <= tonumber(ARGV[2]) then
    redis.call('HSET', key, 'lease', 0, 'fence', math.max(now, job[2] + 1))
  end
end
return 'ok'
"""
)

#: What an operator wants; of a job that has ended there is nothing to want.
WANT = Script(
    """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
if status == 'finished' or status == 'stopped' or status == 'failed' then return status end
redis.call('HSET', KEYS[1], 'wanted', ARGV[1], 'reason', ARGV[2])
return 'ok'
"""
)

#: A job that has ended, or is paused, is queued again, and its unfinished round begins anew.
REVIVE = Script(
    _NOW
    + _IS_LIVE
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
if live(status) then return 'conflict' end
redis.call('HSET', KEYS[1], 'status', 'queued', 'detail', 'waiting for an aggregator', 'lease', 0, 'announced', now,
  'rounds', ARGV[1], 'wanted', 'running', 'reason', '', 'claims', 0)
redis.call('HDEL', KEYS[1], 'ended', 'waiting')
if status ~= 'paused' then redis.call('DEL', unpack(KEYS, 2)) end
return 'ok'
"""
)

#: A job that the object store knows and Redis does not; ARGV[2] on are the fields of its hash. Its fence is nobody's,
#: and past all that were given before Redis lost it, though it were in this very millisecond.
RESTORE = Script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'duplicate' end
redis.call('HSET', KEYS[1], 'fence', now + 1, 'lease', 0, 'announced', 0, unpack(ARGV, 2))
local created = tonumber(redis.call('HGET', KEYS[1], 'created'))
redis.call('ZADD', KEYS[2], created > 0 and created or now, ARGV[1])
return 'ok'
"""
)

#: The store holds a later round than Redis knows of: it is committed. `KEYS[2]` is the hash of the totals.
ADVANCE = Script(
    _COUNT
    + _FENCED
    + """
if tonumber(redis.call('HGET', KEYS[1], 'round')) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'round', ARGV[2], 'claims', 0)
  count(KEYS[2])
end
return 'ok'
"""
)

DESCRIBE = Script(
    _NOW
    + _FENCED
    + """
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'detail', ARGV[3])
if ARGV[2] == 'waiting' then
  redis.call('HSETNX', KEYS[1], 'waiting', now)
else
  redis.call('HDEL', KEYS[1], 'waiting')
end
return 'ok'
"""
)

METRICS = Script(_FENCED + "redis.call('HSET', KEYS[1], 'metrics', ARGV[2]) return 'ok'")

OWNED = Script(_FENCED + "return 'ok'")

END = Script(
    _NOW
    + _FENCED
    + "redis.call('HSET', KEYS[1], 'status', ARGV[2], 'detail', ARGV[3], 'ended', now, 'lease', 0) return 'ok'"
)

#: A fault is counted, and kept in the job's log, whose oldest lines go first; once for each detail, ARGV[4] on.
NOTE = Script(
    _NOW
    + """
redis.call('HINCRBY', KEYS[1], ARGV[1], #ARGV - 3)
if KEYS[2] then
  for i = 4, #ARGV do
    local line = {at = now / 1000, fault = ARGV[1], round = tonumber(ARGV[2]), detail = ARGV[i]}
    redis.call('RPUSH', KEYS[2], cjson.encode(line))
  end
  redis.call('LTRIM', KEYS[2], -tonumber(ARGV[3]), -1)
end
return 'ok'
"""
)

#: When this aggregator last looked, and now. A look that finds an earlier one than its caller knows of, or none, finds
#: that Redis went back, and leaves it at that: the caller will see it again, until it has restored what was lost. Each
#: has a key of its own, which nobody else's look can bring up to date.
PULSE = Script(
    _NOW
    + """
local before = redis.call('GET', KEYS[1]) or '-1'
if tonumber(before) >= tonumber(ARGV[1]) then redis.call('SET', KEYS[1], now, 'EX', 600) end
return {before, tostring(now)}
"""
)

#: Clients of a cohort, each with its place: ARGV[3] on, the first at place ARGV[2].
_PLACES = """
local function place(cohort, first)
  for i = first, #ARGV do redis.call('ZADD', cohort, ARGV[2] + i - first, ARGV[i]) end
end
"""

#: A piece of a cohort that is too long for one call, into `KEYS[2]`, where it waits for the round to be opened.
STAGE = Script(
    _PLACES
    + _FENCED
    + """
if tonumber(ARGV[2]) == 0 then redis.call('DEL', KEYS[2]) end
place(KEYS[2], 3)
redis.call('EXPIRE', KEYS[2], 600)
return 'ok'
"""
)

#: `KEYS[6]` is where the clients before place ARGV[2] wait; the others are ARGV[8] on.
OPEN = Script(
    _NOW
    + _PLACES
    + _FENCED
    + """
if redis.call('HGET', KEYS[1], 'round') ~= tostring(ARGV[3] - 1) then return 'conflict' end
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'closed' or state == 'committed' then return 'conflict' end
if redis.call('ZCARD', KEYS[6]) < tonumber(ARGV[2]) then return 'lost' end
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
if tonumber(ARGV[2]) > 0 then redis.call('RENAME', KEYS[6], KEYS[5]) end
place(KEYS[5], 8)
local deadline = now + ARGV[5]
redis.call('HSET', KEYS[2], 'state', 'open', 'attempt', ARGV[4], 'carried', ARGV[6],
  'target', ARGV[7], 'opened', now, 'deadline', deadline)
redis.call('HSET', KEYS[1], 'status', 'running', 'detail',
  'round ' .. ARGV[3] .. ' of ' .. redis.call('HGET', KEYS[1], 'rounds'))
redis.call('HDEL', KEYS[1], 'waiting')
redis.call('PERSIST', KEYS[2])
redis.call('PERSIST', KEYS[5])
return deadline
"""
)

#: More time for an open round that was held up: ARGV[2] ms from now, and at most ARGV[3] ms from its opening.
EXTEND = Script(
    _NOW
    + _FENCED
    + """
local row = redis.call('HMGET', KEYS[2], 'state', 'opened', 'deadline')
if not row[1] then return 'lost' end
if row[1] ~= 'open' then return 'conflict' end
local deadline = math.max(tonumber(row[3]), math.min(now + ARGV[2], row[2] + ARGV[3]))
redis.call('HSET', KEYS[2], 'deadline', deadline)
return math.max(0, deadline - now)
"""
)

_ADMISSION_BODY = """
local function late(round, now)
  local row = redis.call('HMGET', round, 'state', 'deadline')
  return row[1] ~= 'open' or tonumber(row[2]) < now
end
local function standing(cohort, accepted, client)
  if not redis.call('ZSCORE', cohort, client) then return 'stranger' end
  if redis.call('HEXISTS', accepted, client) == 1 then return 'duplicate' end
  return 'ok'
end
"""

ADMISSION = Script(
    _NOW
    + _ADMISSION_BODY
    + """
if late(KEYS[1], now) then return 'late' end
return standing(KEYS[4], KEYS[2], ARGV[1])
"""
)

#: All clients of an update, whose names and entries are ARGV[2] on in turn, or none of them.
ACCEPT = Script(
    _NOW
    + _ADMISSION_BODY
    + _FENCED
    + """
if late(KEYS[2], now) then return 'late' end
for i = 2, #ARGV, 2 do
  local answer = standing(KEYS[5], KEYS[3], ARGV[i])
  if answer ~= 'ok' then return answer end
end
redis.call('HSET', KEYS[3], unpack(ARGV, 2))
return 'ok'
"""
)

#: Clients and reasons are ARGV[2] on in turn.
REJECT = Script(
    _FENCED
    + """
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1]) end
return 'ok'
"""
)

#: An accepted update that can no longer be had: listed with the reason instead, while the round is open.
EXCLUDE = Script(
    _FENCED
    + """
if redis.call('HGET', KEYS[2], 'state') ~= 'open' then return 'conflict' end
if redis.call('HDEL', KEYS[3], ARGV[2]) == 1 then redis.call('HSET', KEYS[4], ARGV[2], ARGV[3]) end
return 'ok'
"""
)

#: Freezes the accepted updates. Fewer than the caller has counted: Redis has forgotten some, and nothing is frozen.
CLOSE = Script(
    _FENCED
    + """
local state = redis.call('HGET', KEYS[2], 'state')
if not state then return 'lost' end
if state == 'committed' or state == 'closed' then return 'ok' end
if state ~= 'open' then return 'conflict' end
if redis.call('HLEN', KEYS[3]) < tonumber(ARGV[2]) then return 'lost' end
redis.call('HSET', KEYS[2], 'state', 'closed')
return 'ok'
"""
)

COMMIT = Script(
    _COUNT
    + _FENCED
    + """
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'committed' then return 'ok' end
if state ~= 'closed' then return 'conflict' end
redis.call('HSET', KEYS[2], 'state', 'committed')
redis.call('HSET', KEYS[1], 'round', ARGV[2], 'claims', 0)
count(KEYS[6])
return 'ok'
"""
)

FAIL = Script(
    _COUNT
    + _FENCED
    + """
local state = redis.call('HGET', KEYS[2], 'state')
if not state then return 'lost' end
if state == 'committed' then return 'conflict' end
if state ~= 'failed' then count(KEYS[6]) end
redis.call('HSET', KEYS[2], 'state', 'failed', 'reason', ARGV[2])
for i = 2, 5 do redis.call('EXPIRE', KEYS[i], 7 * 86400) end  -- there is no manifest: people look here
return 'ok'
"""
)
