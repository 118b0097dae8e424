"""The roster: which trainers are alive, as leases in Redis.

A sorted set holds each trainer's `alive_until`, a hash what it last said of itself. Time is Redis's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared import names
from shared.events import Heartbeat
from shared.redis.client import Redis, Script


@dataclass(frozen=True)
class Member:
    """A trainer as its last heartbeat showed it."""

    trainer: str
    pool: str | None
    client: str | None
    host: str
    pid: int
    device: str
    slots: int
    busy: int
    alive_for: float  # seconds its lease still runs
    skew: float  # seconds its clock is ahead of Redis's, the way of the message included

    @property
    def group(self) -> str:
        return self.pool or self.client or ""


class Roster:
    """Membership as the registry writes it and everybody reads it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def admit(self, beat: Heartbeat, lease: float) -> bool:
        """Renews a trainer's lease for `lease` seconds; true where it had none."""
        fields = [
            "pool", beat.pool or "", "client", beat.client or "", "host", beat.host, "pid", beat.pid,
            "device", beat.device, "slots", beat.slots, "busy", beat.busy, "sent_at", beat.sent_at,
        ]  # fmt: skip
        keys = [names.ROSTER, names.trainer_key(beat.trainer)]
        return bool(self._redis.run(_ADMIT, keys, [beat.trainer, int(lease * 1000), *fields]))

    def remove(self, trainer: str) -> bool:
        """Ends a lease; true for the one caller who did."""
        return bool(self._redis.run(_REMOVE, [names.ROSTER, names.trainer_key(trainer)], [trainer]))

    def sweep(self) -> list[str]:
        """Removes those whose lease ran out and names them; each is named to one caller only."""
        return list(self._redis.run(_SWEEP, [names.ROSTER], ["fedq:trainer:"]))

    def next_expiry(self) -> float | None:
        """Seconds until the first lease runs out, or None where there is none."""
        left = self._redis.run(_NEXT_EXPIRY, [names.ROSTER], [])
        return None if left is None else max(0.0, int(left) / 1000)

    def alive(self) -> list[Member]:
        """Everybody whose lease runs, in the order of their names."""
        rows = self._redis.run(_ALIVE, [names.ROSTER], ["fedq:trainer:"])
        return sorted((_member(row) for row in rows), key=lambda member: member.trainer)


def groups(members: Iterable[Member]) -> dict[str, int]:
    """Slots alive in each pool, and in each silo."""
    slots: dict[str, int] = {}
    for member in members:
        slots[member.group] = slots.get(member.group, 0) + member.slots
    return slots


def busy(members: Iterable[Member]) -> dict[str, int]:
    """Slots at work in each pool, and in each silo."""
    slots: dict[str, int] = {}
    for member in members:
        slots[member.group] = slots.get(member.group, 0) + member.busy
    return slots


def _member(row: list[str]) -> Member:
    trainer, alive_for, *pairs = row
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return Member(
        trainer=trainer,
        pool=fields["pool"] or None,
        client=fields["client"] or None,
        host=fields["host"],
        pid=int(fields["pid"]),
        device=fields["device"],
        slots=int(fields["slots"]),
        busy=int(fields["busy"]),
        alive_for=int(alive_for) / 1000,
        skew=float(fields["sent_at"]) - float(fields["seen_at"]),
    )


_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

_ADMIT = Script(
    _NOW
    + """
local joined = redis.call('ZSCORE', KEYS[1], ARGV[1]) == false
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], 'seen_at', now / 1000, unpack(ARGV, 3))
return joined and 1 or 0
"""
)

_REMOVE = Script(
    """
redis.call('DEL', KEYS[2])
return redis.call('ZREM', KEYS[1], ARGV[1])
"""
)

_SWEEP = Script(
    _NOW
    + """
local lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
for _, trainer in ipairs(lost) do
  redis.call('ZREM', KEYS[1], trainer)
  redis.call('DEL', ARGV[1] .. trainer)
end
return lost
"""
)

_NEXT_EXPIRY = Script(
    _NOW
    + """
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #first == 0 then return nil end
return math.floor(first[2] - now)
"""
)

_ALIVE = Script(
    _NOW
    + """
local rows = {}
local alive = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES')
for i = 1, #alive, 2 do
  local fields = redis.call('HGETALL', ARGV[1] .. alive[i])
  if #fields > 0 then
    rows[#rows + 1] = {alive[i], tostring(math.floor(alive[i + 1] - now)), unpack(fields)}
  end
end
return rows
"""
)
