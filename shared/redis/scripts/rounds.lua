-- The steps of a round. KEYS[1] is the job's hash; KEYS[2] to KEYS[5] are the round's hash, its accepted, its rejected
-- and its cohort; KEYS[6] of a step that ends a round is the hash of the totals. No step of an open round looks at more
-- of it than the clients that it is about. common.lua goes ahead of this file.

-- Clients of a cohort, each with its place: ARGV[first] on, the first at place ARGV[2].
local function place(cohort, first)
  for i = first, #ARGV do redis.call('ZADD', cohort, ARGV[2] + i - first, ARGV[i]) end
end

local function late(round, now)
  local row = redis.call('HMGET', round, 'state', 'deadline')
  return row[1] ~= 'open' or tonumber(row[2]) < now
end

local function admission(cohort, accepted, client)
  if not redis.call('ZSCORE', cohort, client) then return 'stranger' end
  if redis.call('HEXISTS', accepted, client) == 1 then return 'duplicate' end
  return 'ok'
end

-- Puts a piece of a cohort that is too long for one call into KEYS[2], where it waits for the round to be opened.
local function stage()
  local refused = fenced()
  if refused then return refused end
  if tonumber(ARGV[2]) == 0 then redis.call('DEL', KEYS[2]) end
  place(KEYS[2], 3)
  redis.call('EXPIRE', KEYS[2], 600)
  return 'ok'
end

-- Opens the round after the last committed one; the answer is its deadline. The clients before place ARGV[2] wait at
-- KEYS[6]; the others are ARGV[8] on.
local function open_round()
  local refused = fenced()
  if refused then return refused end
  local now = clock()
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
end

-- Gives more time to an open round that was held up: ARGV[2] ms from now, and at most ARGV[3] ms from its opening.
local function extend()
  local refused = fenced()
  if refused then return refused end
  local now = clock()
  local row = redis.call('HMGET', KEYS[2], 'state', 'opened', 'deadline')
  if not row[1] then return 'lost' end
  if row[1] ~= 'open' then return 'conflict' end
  local deadline = math.max(tonumber(row[3]), math.min(now + ARGV[2], row[2] + ARGV[3]))
  redis.call('HSET', KEYS[2], 'deadline', deadline)
  return math.max(0, deadline - now)
end

-- Says whether an update of client ARGV[1] would be counted now. KEYS are the round's own, without the job's.
local function admission_of()
  local now = clock()
  if late(KEYS[1], now) then return 'late' end
  return admission(KEYS[4], KEYS[2], ARGV[1])
end

-- Counts all clients of an update, whose names and entries are ARGV[2] on in turn, or none of them.
local function accept()
  local refused = fenced()
  if refused then return refused end
  local now = clock()
  if late(KEYS[2], now) then return 'late' end
  for i = 2, #ARGV, 2 do
    local answer = admission(KEYS[5], KEYS[3], ARGV[i])
    if answer ~= 'ok' then return answer end
  end
  redis.call('HSET', KEYS[3], unpack(ARGV, 2))
  return 'ok'
end

-- Lists clients with the reason why their updates are not counted: ARGV[2] on in turn.
local function reject()
  local refused = fenced()
  if refused then return refused end
  for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1]) end
  return 'ok'
end

-- Lists an accepted update that can no longer be had with the reason instead, while the round is open.
local function exclude()
  local refused = fenced()
  if refused then return refused end
  if redis.call('HGET', KEYS[2], 'state') ~= 'open' then return 'conflict' end
  if redis.call('HDEL', KEYS[3], ARGV[2]) == 1 then redis.call('HSET', KEYS[4], ARGV[2], ARGV[3]) end
  return 'ok'
end

-- Freezes the accepted updates. If they are fewer than the caller has counted, Redis has forgotten some, and nothing is
-- frozen.
local function close_round()
  local refused = fenced()
  if refused then return refused end
  local state = redis.call('HGET', KEYS[2], 'state')
  if not state then return 'lost' end
  if state == 'committed' or state == 'closed' then return 'ok' end
  if state ~= 'open' then return 'conflict' end
  if redis.call('HLEN', KEYS[3]) < tonumber(ARGV[2]) then return 'lost' end
  redis.call('HSET', KEYS[2], 'state', 'closed')
  return 'ok'
end

-- Commits a closed round, once, and adds its totals.
local function commit_round()
  local refused = fenced()
  if refused then return refused end
  local state = redis.call('HGET', KEYS[2], 'state')
  if state == 'committed' then return 'ok' end
  if state ~= 'closed' then return 'conflict' end
  redis.call('HSET', KEYS[2], 'state', 'committed')
  redis.call('HSET', KEYS[1], 'round', ARGV[2], 'claims', 0)
  count(KEYS[6])
  return 'ok'
end

-- Ends a round without a model, and adds its totals once.
local function fail_round()
  local refused = fenced()
  if refused then return refused end
  local state = redis.call('HGET', KEYS[2], 'state')
  if not state then return 'lost' end
  if state == 'committed' then return 'conflict' end
  if state ~= 'failed' then count(KEYS[6]) end
  redis.call('HSET', KEYS[2], 'state', 'failed', 'reason', ARGV[2])
  -- A failed round has no manifest: for a week, people can look here.
  for i = 2, 5 do redis.call('EXPIRE', KEYS[i], 7 * 86400) end
  return 'ok'
end
