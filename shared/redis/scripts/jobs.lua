-- The steps of a job. KEYS[1] is the job's hash, unless a step says otherwise; common.lua goes ahead of this file.

-- Records a queued job, whose start is announced in this moment.
local function create()
  local now = clock()
  if redis.call('EXISTS', KEYS[1]) == 1 then return 'duplicate' end
  redis.call('HSET', KEYS[1], 'status', 'queued', 'detail', 'waiting for an aggregator', 'round', -1,
    'rounds', ARGV[2], 'fence', 0, 'lease', 0, 'created', now, 'announced', now, 'wanted', 'running')
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  return 'ok'
end

-- Forgets a job that has ended, or answers the status of one that is live.
local function remove()
  local status = redis.call('HGET', KEYS[1], 'status')
  if status and live(status) then return status end
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 'ok'
end

-- Gives a live job that nobody owns to ARGV[1]; the answer is its fence. The fence is Redis's time in ms, or one more
-- than the last: it grows even if Redis has forgotten the last one.
local function claim()
  local now = clock()
  local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease', 'fence')
  if not job[1] then return 'unknown' end
  if not live(job[1]) then return job[1] end
  if tonumber(job[3]) > now then return 'owned by ' .. job[2] end
  local fence = math.max(now, tonumber(job[4]) + 1)
  redis.call('HSET', KEYS[1], 'status', 'running', 'detail', '', 'owner', ARGV[1], 'lease', now + ARGV[2],
    'fence', fence)
  redis.call('HSETNX', KEYS[1], 'started', now)
  redis.call('HINCRBY', KEYS[1], 'claims', 1)
  return fence
end

-- Keeps the owner's lease, and answers the status that an operator wants, and the reason.
local function renew()
  local refused = fenced()
  if refused then return refused end
  local now = clock()
  redis.call('HSET', KEYS[1], 'lease', now + ARGV[2])
  return redis.call('HMGET', KEYS[1], 'wanted', 'reason')
end

-- Ends the owner's lease in good order: this claim is not counted among those that ended in a death.
local function release()
  local refused = fenced()
  if refused then return refused end
  local status, detail = ARGV[2], ARGV[3]
  -- An operator may have resumed the job in this moment.
  if status == 'paused' and redis.call('HGET', KEYS[1], 'wanted') ~= 'paused' then
    status, detail = 'queued', 'waiting for an aggregator'
  end
  redis.call('HSET', KEYS[1], 'status', status, 'detail', detail, 'lease', 0)
  local claims = tonumber(redis.call('HGET', KEYS[1], 'claims') or 0)
  if claims > 0 then redis.call('HSET', KEYS[1], 'claims', claims - 1) end
  return status
end

-- Lists the jobs that have no owner and need one: never begun, though the start was announced a while ago, or
-- left by the owner. The first answer is the milliseconds until another lease runs out, or -1.
local function orphans()
  local now = clock()
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
end

-- Takes every live job from its owner: Redis may not know what the owner knows of it.
local function drop_owners()
  local now = clock()
  for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local key = ARGV[1] .. id
    local job = redis.call('HMGET', key, 'status', 'fence')
    if job[1] and live(job[1]) and tonumber(job[2]) > 0 and tonumber(job[2]) <= tonumber(ARGV[2]) then
      redis.call('HSET', key, 'lease', 0, 'fence', math.max(now, job[2] + 1))
    end
  end
  return 'ok'
end

-- Records what an operator wants; a job that has ended takes no more requests.
local function want()
  local status = redis.call('HGET', KEYS[1], 'status')
  if not status then return 'unknown' end
  if status == 'finished' or status == 'stopped' or status == 'failed' then return status end
  redis.call('HSET', KEYS[1], 'wanted', ARGV[1], 'reason', ARGV[2])
  return 'ok'
end

-- Queues a job again that has ended or is paused; its unfinished round begins again from the start.
local function revive()
  local now = clock()
  local status = redis.call('HGET', KEYS[1], 'status')
  if not status then return 'unknown' end
  if live(status) then return 'conflict' end
  redis.call('HSET', KEYS[1], 'status', 'queued', 'detail', 'waiting for an aggregator', 'lease', 0, 'announced', now,
    'rounds', ARGV[1], 'wanted', 'running', 'reason', '', 'claims', 0)
  redis.call('HDEL', KEYS[1], 'ended', 'waiting')
  if status ~= 'paused' then redis.call('DEL', unpack(KEYS, 2)) end
  return 'ok'
end

-- Records a job that the object store knows and Redis does not; ARGV[2] on are the fields of its hash. No owner has its
-- fence, and it is past all that were given before Redis lost the job, even one of this very millisecond.
local function restore()
  local now = clock()
  if redis.call('EXISTS', KEYS[1]) == 1 then return 'duplicate' end
  redis.call('HSET', KEYS[1], 'fence', now + 1, 'lease', 0, 'announced', 0, unpack(ARGV, 2))
  local created = tonumber(redis.call('HGET', KEYS[1], 'created'))
  redis.call('ZADD', KEYS[2], created > 0 and created or now, ARGV[1])
  return 'ok'
end

-- Commits a round that the object store holds and Redis does not know of yet. KEYS[2] is the hash of the totals.
local function advance()
  local refused = fenced()
  if refused then return refused end
  if tonumber(redis.call('HGET', KEYS[1], 'round')) < tonumber(ARGV[2]) then
    redis.call('HSET', KEYS[1], 'round', ARGV[2], 'claims', 0)
    count(KEYS[2])
  end
  return 'ok'
end

-- Says what a running job does, or waits for and since when.
local function describe()
  local refused = fenced()
  if refused then return refused end
  local now = clock()
  redis.call('HSET', KEYS[1], 'status', ARGV[2], 'detail', ARGV[3])
  if ARGV[2] == 'waiting' then
    redis.call('HSETNX', KEYS[1], 'waiting', now)
  else
    redis.call('HDEL', KEYS[1], 'waiting')
  end
  return 'ok'
end

-- Keeps the latest figures of the model.
local function set_metrics()
  local refused = fenced()
  if refused then return refused end
  redis.call('HSET', KEYS[1], 'metrics', ARGV[2])
  return 'ok'
end

-- Asks whether the caller still owns the job.
local function check_owned()
  local refused = fenced()
  if refused then return refused end
  return 'ok'
end

-- Ends a job.
local function end_job()
  local refused = fenced()
  if refused then return refused end
  local now = clock()
  redis.call('HSET', KEYS[1], 'status', ARGV[2], 'detail', ARGV[3], 'ended', now, 'lease', 0)
  return 'ok'
end

-- Counts a fault and keeps it in the job's log, whose oldest lines go first; once for each detail, ARGV[4] on.
local function note()
  local now = clock()
  redis.call('HINCRBY', KEYS[1], ARGV[1], #ARGV - 3)
  if KEYS[2] then
    for i = 4, #ARGV do
      local line = {at = now / 1000, fault = ARGV[1], round = tonumber(ARGV[2]), detail = ARGV[i]}
      redis.call('RPUSH', KEYS[2], cjson.encode(line))
    end
    redis.call('LTRIM', KEYS[2], -tonumber(ARGV[3]), -1)
  end
  return 'ok'
end

-- Answers when this aggregator last looked, and now. A look that finds an earlier one than its caller knows of, or
-- none, shows that Redis went back in time, and is not recorded: the caller sees it again, until it has restored what
-- was lost. Each aggregator has its own key, which no other's look can bring up to date.
local function pulse()
  local now = clock()
  local before = redis.call('GET', KEYS[1]) or '-1'
  if tonumber(before) >= tonumber(ARGV[1]) then redis.call('SET', KEYS[1], now, 'EX', 600) end
  return {before, tostring(now)}
end
