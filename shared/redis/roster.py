"""The roster of trainers that are alive, as leases in Redis.

A sorted set holds each trainer's `alive_until`, and a hash holds its last heartbeat. All times are Redis's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared import names
from shared.events import Heartbeat
from shared.redis.client import Redis
from shared.redis.scripts import load


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
    alive_for: float  # seconds until its lease runs out
    skew: float  # seconds by which its clock is ahead of Redis's, including the message's travel time

    @property
    def group(self) -> str:
        return self.pool or self.client or ""


class Roster:
    """Membership of trainers: the registry writes it, and all services read it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def admit(self, beat: Heartbeat, lease: float) -> bool:
        """Renews a trainer's lease for `lease` seconds; true if it had none."""
        fields = [
            "pool", beat.pool or "", "client", beat.client or "", "host", beat.host, "pid", beat.pid,
            "device", beat.device, "slots", beat.slots, "busy", beat.busy, "sent_at", beat.sent_at,
        ]  # fmt: skip
        keys = [names.ROSTER, names.trainer_key(beat.trainer)]
        return bool(self._redis.run(_ADMIT, keys, [beat.trainer, int(lease * 1000), *fields]))

    def remove(self, trainer: str) -> bool:
        """Ends a trainer's lease; true only for the caller that ended it."""
        return bool(self._redis.run(_REMOVE, [names.ROSTER, names.trainer_key(trainer)], [trainer]))

    def sweep(self) -> list[str]:
        """Removes the trainers whose leases ran out and returns their names, each to one caller only."""
        return list(self._redis.run(_SWEEP, [names.ROSTER], ["fedq:trainer:"]))

    def next_expiry(self) -> float | None:
        """Seconds until the first lease runs out, or None if there is no lease."""
        left = self._redis.run(_NEXT_EXPIRY, [names.ROSTER], [])
        return None if left is None else max(0.0, int(left) / 1000)

    def alive(self) -> list[Member]:
        """All trainers whose leases run, in the order of their names."""
        rows = self._redis.run(_ALIVE, [names.ROSTER], ["fedq:trainer:"])
        return sorted((_member(row) for row in rows), key=lambda member: member.trainer)


def groups(members: Iterable[Member]) -> dict[str, int]:
    """Number of slots of live trainers in each pool, and in each silo."""
    slots: dict[str, int] = {}
    for member in members:
        slots[member.group] = slots.get(member.group, 0) + member.slots
    return slots


def busy(members: Iterable[Member]) -> dict[str, int]:
    """Number of busy slots in each pool, and in each silo."""
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


_ADMIT = load("roster", "admit")
_REMOVE = load("roster", "remove")
_SWEEP = load("roster", "sweep")
_NEXT_EXPIRY = load("roster", "next_expiry")
_ALIVE = load("roster", "alive")
