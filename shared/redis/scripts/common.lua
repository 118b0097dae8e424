-- The functions that several steps share. This text goes ahead of the file that a step is in.

-- Redis's time in ms, the only clock of jobs, rounds and leases.
local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A step of a job's owner begins by asking whether the caller still owns the job: its fence is ARGV[1].
local function fenced()
  local fence = redis.call('HGET', KEYS[1], 'fence')
  if not fence then return 'lost' end
  if fence ~= ARGV[1] then return 'fenced' end
end

local function live(status) return status == 'queued' or status == 'waiting' or status == 'running' end

-- The step that ends a round adds its totals: names and amounts are ARGV[3] on in turn, all of them integers.
local function count(totals)
  for i = 3, #ARGV, 2 do redis.call('HINCRBY', totals, ARGV[i], ARGV[i + 1]) end
end
