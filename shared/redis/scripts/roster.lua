-- The roster of trainers. KEYS[1] is the sorted set of leases, each by the ms when it runs out; KEYS[2] is a trainer's
-- hash; ARGV[1] of a step on all trainers is what the keys of their hashes begin with. common.lua goes ahead of it.

-- Renews a trainer's lease, ARGV[2] ms from now, and keeps what it says of itself; 1 if it had no lease.
local function admit()
  local now = clock()
  local joined = redis.call('ZSCORE', KEYS[1], ARGV[1]) == false
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
  redis.call('HSET', KEYS[2], 'seen_at', now / 1000, unpack(ARGV, 3))
  return joined and 1 or 0
end

-- Ends a trainer's lease; 1 if it had one.
local function remove()
  redis.call('DEL', KEYS[2])
  return redis.call('ZREM', KEYS[1], ARGV[1])
end

-- Removes the trainers whose leases ran out, and names them.
local function sweep()
  local now = clock()
  local lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
  for _, trainer in ipairs(lost) do
    redis.call('ZREM', KEYS[1], trainer)
    redis.call('DEL', ARGV[1] .. trainer)
  end
  return lost
end

-- Milliseconds until the first lease runs out, or nil if there is none.
local function next_expiry()
  local now = clock()
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if #first == 0 then return nil end
  return math.floor(first[2] - now)
end

-- For each trainer whose lease runs: its name, the milliseconds left, and the fields of its hash in turn.
local function alive()
  local now = clock()
  local rows = {}
  local alive = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES')
  for i = 1, #alive, 2 do
    local fields = redis.call('HGETALL', ARGV[1] .. alive[i])
    if #fields > 0 then
      rows[#rows + 1] = {alive[i], tostring(math.floor(alive[i + 1] - now)), unpack(fields)}
    end
  end
  return rows
end
