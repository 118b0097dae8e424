"""The referee: the record of jobs and rounds in Redis, changed by small atomic steps.

Each step is one Lua script that names the fence it expects and answers with a word: `ok`, `duplicate`, `late`, `fenced`
or `conflict`. Time is Redis's. Nothing here is the only copy: the object store is the record, and this can be
rebuilt from it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from shared import names
from shared.errors import BadInput, Fenced, Stale
from shared.redis_client import Redis, Script

LIVE = ("queued", "waiting", "running")  #: statuses of a job that has not ended
ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class JobRecord:
    """A job as the record has it; times are seconds since the epoch, by Redis's clock."""

    id: str
    status: str
    detail: str  # what it waits for, or why it ended
    round: int  # the last committed one; -1 before the initial model
    rounds: int  # how many it is to have
    owner: str
    fence: int
    created: float
    started: float
    ended: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """A round as the record has it."""

    number: int
    state: str  # open, closed, committed, failed
    attempt: int
    cohort: tuple[str, ...]
    opened: float
    deadline: float
    accepted: dict[str, dict[str, Any]]  # client → what its update said
    rejected: dict[str, str]  # client → reason


class Ledger:
    """Jobs and rounds; safe to share between threads."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    # --- jobs ---------------------------------------------------------------------------------

    def create(self, job: str, rounds: int) -> bool:
        """Records a queued job; false where the id is taken."""
        keys = [names.job_key(job), names.JOBS]
        return bool(self._redis.run(_CREATE, keys, [job, rounds]) == "ok")

    def forget(self, job: str) -> None:
        """Takes back a job that could not be announced."""
        self._redis.delete(names.job_key(job))
        self._redis.zrem(names.JOBS, job)

    def claim(self, job: str, owner: str, lease: float) -> int:
        """Takes the job's lease and returns its fence; `Stale` where it has ended or another holds it."""
        answer = self._redis.run(_CLAIM, [names.job_key(job)], [owner, int(lease * 1000)])
        if isinstance(answer, str):
            raise Stale(f"job {job} is {answer}")
        return int(answer)

    def renew(self, job: str, fence: int, lease: float) -> None:
        """Keeps the lease; `Fenced` where it is another's."""
        self._step(_RENEW, job, [names.job_key(job)], [fence, int(lease * 1000)])

    def release(self, job: str, fence: int) -> None:
        """Gives the job to whoever claims it next."""
        self._step(_RELEASE, job, [names.job_key(job)], [fence])

    def orphans(self) -> list[str]:
        """Live jobs that were begun and whose lease has run out."""
        return list(self._redis.run(_ORPHANS, [names.JOBS], ["fedq:job:"]))

    def describe(self, job: str, fence: int, status: str, detail: str) -> None:
        """Says what a running job does or waits for."""
        self._step(_DESCRIBE, job, [names.job_key(job)], [fence, status, detail])

    def end(self, job: str, fence: int, status: str, detail: str) -> None:
        """Ends a job: finished, stopped or failed."""
        self._step(_END, job, [names.job_key(job)], [fence, status, detail])

    def set_metrics(self, job: str, fence: int, metrics: dict[str, float]) -> None:
        """Keeps the latest figures of the model."""
        self._step(_METRICS, job, [names.job_key(job)], [fence, json.dumps(metrics)])

    def jobs(self) -> list[JobRecord]:
        """Every job, the newest first."""
        found = (self.job(job) for job in self._redis.zrevrange(names.JOBS, 0, -1))
        return [record for record in found if record is not None]

    def job(self, job: str) -> JobRecord | None:
        row = self._redis.hgetall(names.job_key(job))
        if not row:
            return None
        return JobRecord(
            id=job,
            status=row["status"],
            detail=row.get("detail", ""),
            round=int(row["round"]),
            rounds=int(row["rounds"]),
            owner=row.get("owner", ""),
            fence=int(row["fence"]),
            created=_seconds(row.get("created")),
            started=_seconds(row.get("started")),
            ended=_seconds(row.get("ended")),
            metrics=json.loads(row.get("metrics", "{}")),
        )

    def required(self, job: str) -> JobRecord:
        """The job, or `BadInput` for a person who asked for one that is not there."""
        record = self.job(job)
        if record is None:
            raise BadInput(f"there is no job {job}; `fedq jobs` lists them")
        return record

    # --- rounds -------------------------------------------------------------------------------

    def open_round(
        self,
        job: str,
        fence: int,
        number: int,
        attempt: int,
        cohort: tuple[str, ...],
        seconds: float,
    ) -> float:
        """Opens the round after the last committed one; returns its deadline."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        args = [fence, number, attempt, json.dumps(cohort), int(seconds * 1000), *cohort]
        return float(self._step(_OPEN, job, keys, args)) / 1000

    def accept(self, job: str, fence: int, number: int, client: str, update: dict[str, Any]) -> str:
        """Counts a client's update, at most once; answers ok, duplicate, late, conflict or stranger."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        return str(self._step(_ACCEPT, job, keys, [fence, client, json.dumps(update)]))

    def standing(self, job: str, number: int, client: str) -> str:
        """How an update of `client` would fare now: ok, duplicate, late or stranger; nothing is changed."""
        return str(self._redis.run(_STANDING, list(_round_keys(job, number)), [client]))

    def reject(self, job: str, fence: int, number: int, client: str, reason: str) -> None:
        """Records why a client's update is not in the round; a first reason stays."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        self._step(_REJECT, job, keys, [fence, client, reason])

    def accepted(self, job: str, number: int, client: str) -> dict[str, Any]:
        """What a client's counted update said; empty where none was counted."""
        found = self._redis.hget(names.accepted_key(job, number), client)
        return dict(json.loads(found)) if found else {}

    def close_round(self, job: str, fence: int, number: int) -> dict[str, dict[str, Any]]:
        """Freezes the set of accepted updates and returns it; closing again returns the same."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        pairs = self._step(_CLOSE, job, keys, [fence])
        return {client: json.loads(update) for client, update in zip(pairs[::2], pairs[1::2], strict=True)}

    def commit_round(self, job: str, fence: int, number: int) -> None:
        """The round's model and manifest are in the store: it is the job's last committed one."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        self._step(_COMMIT, job, keys, [fence, number])

    def fail_round(self, job: str, fence: int, number: int) -> None:
        """The round ended without a model."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        self._step(_FAIL, job, keys, [fence])

    def drop_round(self, job: str, number: int) -> None:
        """Forgets a committed round: its manifest is the record."""
        self._redis.delete(*_round_keys(job, number))

    def round(self, job: str, number: int) -> RoundRecord | None:
        row = self._redis.hgetall(names.round_key(job, number))
        if not row:
            return None
        accepted = self._redis.hgetall(names.accepted_key(job, number))
        return RoundRecord(
            number=number,
            state=row["state"],
            attempt=int(row["attempt"]),
            cohort=tuple(json.loads(row["cohort"])),
            opened=_seconds(row["opened"]),
            deadline=_seconds(row["deadline"]),
            accepted={client: json.loads(update) for client, update in sorted(accepted.items())},
            rejected=dict(sorted(self._redis.hgetall(names.rejected_key(job, number)).items())),
        )

    def now(self) -> float:
        """Redis's clock, in seconds since the epoch."""
        seconds, micros = self._redis.time()
        return float(seconds + micros / 1e6)

    def server(self) -> str:
        """Product and version of the server."""
        return f"Redis {self._redis.info('server')['redis_version']}"

    def _step(self, script: Script, job: str, keys: list[str], args: list[Any]) -> Any:
        answer = self._redis.run(script, keys, args)
        if answer == "fenced":
            raise Fenced(f"job {job} belongs to another aggregator now")
        if answer == "conflict":
            raise Stale(f"job {job} has moved on")
        return answer


def _round_keys(job: str, number: int) -> tuple[str, str, str]:
    return (
        names.round_key(job, number),
        names.accepted_key(job, number),
        names.rejected_key(job, number),
    )


def _seconds(milliseconds: str | None) -> float:
    return int(milliseconds or 0) / 1000


_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
#: A job's step begins by asking whether the caller still owns the job.
_FENCED = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 'fenced' end
"""

_CREATE = Script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'duplicate' end
redis.call('HSET', KEYS[1], 'status', 'queued', 'detail', 'waiting for an aggregator', 'round', -1,
  'rounds', ARGV[2], 'fence', 0, 'lease', 0, 'created', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 'ok'
"""
)

_CLAIM = Script(
    _NOW
    + """
local job = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease')
if not job[1] then return 'unknown' end
if job[1] == 'finished' or job[1] == 'stopped' or job[1] == 'failed' then return job[1] end
if tonumber(job[3]) > now then return 'owned by ' .. job[2] end
redis.call('HSET', KEYS[1], 'status', 'running', 'detail', '', 'owner', ARGV[1], 'lease', now + ARGV[2])
redis.call('HSETNX', KEYS[1], 'started', now)
return redis.call('HINCRBY', KEYS[1], 'fence', 1)
"""
)

_RENEW = Script(_NOW + _FENCED + "redis.call('HSET', KEYS[1], 'lease', now + ARGV[2]) return 'ok'")

_RELEASE = Script(
    _FENCED
    + "redis.call('HSET', KEYS[1], 'status', 'queued', 'detail', 'waiting for an aggregator', 'lease', 0) return 'ok'"
)

_ORPHANS = Script(
    _NOW
    + """
local orphans = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local job = redis.call('HMGET', ARGV[1] .. id, 'status', 'fence', 'lease')
  local live = job[1] == 'queued' or job[1] == 'waiting' or job[1] == 'running'
  if live and tonumber(job[2]) > 0 and tonumber(job[3]) <= now then orphans[#orphans + 1] = id end
end
return orphans
"""
)

_DESCRIBE = Script(_FENCED + "redis.call('HSET', KEYS[1], 'status', ARGV[2], 'detail', ARGV[3]) return 'ok'")

_METRICS = Script(_FENCED + "redis.call('HSET', KEYS[1], 'metrics', ARGV[2]) return 'ok'")

_END = Script(
    _NOW
    + _FENCED
    + "redis.call('HSET', KEYS[1], 'status', ARGV[2], 'detail', ARGV[3], 'ended', now, 'lease', 0) return 'ok'"
)

_OPEN = Script(
    _NOW
    + _FENCED
    + """
if redis.call('HGET', KEYS[1], 'round') ~= tostring(ARGV[2] - 1) then return 'conflict' end
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'closed' or state == 'committed' then return 'conflict' end
local deadline = now + ARGV[5]
redis.call('HSET', KEYS[2], 'state', 'open', 'attempt', ARGV[3], 'cohort', ARGV[4], 'opened', now, 'deadline', deadline)
redis.call('HSET', KEYS[1], 'status', 'running', 'detail',
  'round ' .. ARGV[2] .. ' of ' .. redis.call('HGET', KEYS[1], 'rounds'))
redis.call('PERSIST', KEYS[2])
redis.call('DEL', KEYS[3], KEYS[4])
return deadline
"""
)

_STANDING_BODY = """
local function standing(round, accepted, client, now)
  local row = redis.call('HMGET', round, 'state', 'deadline', 'cohort')
  if row[1] ~= 'open' or tonumber(row[2]) < now then return 'late' end
  local member = false
  for _, name in ipairs(cjson.decode(row[3])) do member = member or name == client end
  if not member then return 'stranger' end
  if redis.call('HEXISTS', accepted, client) == 1 then return 'duplicate' end
  return 'ok'
end
"""

_STANDING = Script(_NOW + _STANDING_BODY + "return standing(KEYS[1], KEYS[2], ARGV[1], now)")

_ACCEPT = Script(
    _NOW
    + _STANDING_BODY
    + _FENCED
    + """
local answer = standing(KEYS[2], KEYS[3], ARGV[2], now)
if answer == 'ok' then redis.call('HSET', KEYS[3], ARGV[2], ARGV[3]) end
return answer
"""
)

_REJECT = Script(_FENCED + "redis.call('HSETNX', KEYS[4], ARGV[2], ARGV[3]) return 'ok'")

_CLOSE = Script(
    _FENCED
    + """
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'committed' then return redis.call('HGETALL', KEYS[3]) end
if state ~= 'open' and state ~= 'closed' then return 'conflict' end
redis.call('HSET', KEYS[2], 'state', 'closed')
return redis.call('HGETALL', KEYS[3])
"""
)

_COMMIT = Script(
    _FENCED
    + """
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'committed' then return 'ok' end
if state ~= 'closed' then return 'conflict' end
redis.call('HSET', KEYS[2], 'state', 'committed')
redis.call('HSET', KEYS[1], 'round', ARGV[2])
return 'ok'
"""
)

_FAIL = Script(
    _FENCED
    + """
redis.call('HSET', KEYS[2], 'state', 'failed')
for i = 2, 4 do redis.call('EXPIRE', KEYS[i], 7 * 86400) end  -- there is no manifest: people look here
return 'ok'
"""
)
