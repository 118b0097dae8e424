"""The ledger of jobs and rounds in Redis, changed by the atomic steps of `shared.redis.scripts`.

The ledger is never the only copy: the object store holds the record, from which the ledger can be rebuilt.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from shared import names
from shared.errors import BadInput, Fenced, LedgerLost, Stale
from shared.redis import scripts as steps
from shared.redis.client import Redis, Script

LIVE = ("queued", "waiting", "running", "paused")  #: statuses of a job that has not ended
ENDED = ("finished", "stopped", "failed")

ANNOUNCED = 30.0  #: seconds that a queued job waits for its start-training; then an aggregator takes it without one
LOG = 1000  #: lines kept of a job's log
PIECE = 5000  #: clients of a cohort in one call, because Redis answers no other call meanwhile

Status = Literal["running", "paused", "stopped"]
WANTED: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Wanted:
    """The status that an operator requests for a job, and the reason."""

    status: Status = "running"
    reason: str = ""


class Conflict(LedgerLost):
    """The ledger differs from what this replica left: it was restored, or another replica acted."""


@dataclass(frozen=True)
class JobRecord:
    """A job as the ledger has it; times are seconds since the epoch, by Redis's clock."""

    id: str
    status: str
    detail: str  # the thing it waits for, or the reason why it ended
    round: int  # the last committed one; -1 before the initial model
    rounds: int  # number of rounds to train
    owner: str
    fence: int
    created: float
    started: float
    ended: float
    metrics: dict[str, float] = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    waiting: float = 0.0  # time since which it waits for trainers; 0 if it does not
    claims: int = 0  # number of owners since its last commit
    lease: float = 0.0  # time at which its owner's lease runs out; 0 if it has no owner


@dataclass(frozen=True)
class RoundRecord:
    """A round as the ledger has it."""

    number: int
    state: str  # open, closed, committed, failed
    attempt: int
    cohort: tuple[str, ...]
    opened: float
    deadline: float
    accepted: dict[str, dict[str, Any]]  # client → entry of its update
    rejected: dict[str, str]  # client → reason
    reason: str = ""  # of a failure
    carried: dict[str, int] = field(default_factory=dict)  # client → the earlier round in which it was asked
    target: int = 0  # number of updates that close it


class Progress(NamedTuple):
    """Progress of an open round."""

    updates: int  # number counted so far
    target: int


class Sum(NamedTuple):
    """Number of times that something was done, and the total of seconds that it took."""

    times: int
    seconds: float


@dataclass(frozen=True)
class Totals:
    """Totals of one round that ends, or of all rounds that have ended since Redis began to count."""

    rounds: Mapping[str, Sum] = field(default_factory=dict)  # by outcome
    parts: Mapping[str, Sum] = field(default_factory=dict)  # of the work on updates
    updates: Mapping[str, int] = field(default_factory=dict)  # by outcome

    def fields(self) -> dict[str, int]:
        """The totals as Redis keeps them: integers, whose sums do not depend on order; times are in microseconds."""
        found = {f"updates:{outcome}": number for outcome, number in self.updates.items()}
        for kind, sums in (("rounds", self.rounds), ("parts", self.parts)):
            for label, (times, seconds) in sums.items():
                found |= {f"{kind}:{label}": times, f"{kind}:{label}:us": round(seconds * 1e6)}
        return found

    @classmethod
    def read(cls, row: Mapping[str, str]) -> "Totals":
        """The totals from a hash of their `fields`."""

        def sums(kind: str) -> dict[str, Sum]:
            labels = sorted(name.split(":")[1] for name in row if name.startswith(kind) and name.endswith(":us"))
            return {label: Sum(int(row[f"{kind}:{label}"]), int(row[f"{kind}:{label}:us"]) / 1e6) for label in labels}

        updates = {name.split(":")[1]: int(row[name]) for name in sorted(row) if name.startswith("updates:")}
        return cls(sums("rounds"), sums("parts"), updates)


NOTHING = Totals()


class Ledger:
    """The ledger of jobs and rounds; safe to share between threads."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    # --- jobs ---------------------------------------------------------------------------------

    def create(self, job: str, rounds: int) -> bool:
        """Records a queued job; false if the id is taken."""
        keys = [names.job_key(job), names.JOBS]
        return bool(self._redis.run(steps.CREATE, keys, [job, rounds]) == "ok")

    def forget(self, job: str) -> None:
        """Deletes a job that could not be announced."""
        self._redis.delete(names.job_key(job))
        self._redis.zrem(names.JOBS, job)

    def remove(self, job: str) -> str:
        """Deletes all of a job that has ended, or was never known; answers ok, or the status of a live job."""
        answer = str(self._redis.run(steps.REMOVE, [names.job_key(job), names.JOBS], [job]))
        cursor = 0
        while answer == "ok":
            cursor, found = self._redis.scan(cursor, match=f"{names.job_key(job)}:*", count=1000)
            if found:
                self._redis.delete(*found)
            if not cursor:
                break
        return answer

    def claim(self, job: str, owner: str, lease: float) -> int:
        """Takes the job's lease and returns its fence; `Stale` if it has ended, is paused or has another owner."""
        answer = self._redis.run(steps.CLAIM, [names.job_key(job)], [owner, _ms(lease)])
        if isinstance(answer, str):
            raise Stale(f"job {job} is {answer}")
        return int(answer)

    def renew(self, job: str, fence: int, lease: float) -> Wanted:
        """Renews the lease and returns the operator's request; `Fenced` if the job has another owner."""
        return _wanted(self._step(steps.RENEW, job, [names.job_key(job)], [fence, _ms(lease)]))

    def check_owned(self, job: str, fence: int) -> None:
        """Raises `Fenced` if the job has another owner; for calls just before writes that only its owner may make."""
        self._step(steps.OWNED, job, [names.job_key(job)], [fence])

    def release(self, job: str, fence: int, status: str = "queued", detail: str = "waiting for an aggregator") -> str:
        """Releases the lease: another owner may claim the job, or it rests as `paused`; this claim does not count.

        Returns the status: a job that was resumed meanwhile is queued, not paused.
        """
        return str(self._step(steps.RELEASE, job, [names.job_key(job)], [fence, status, detail]))

    def orphans(self) -> tuple[list[str], float | None]:
        """Live jobs without an owner, and the seconds until the next lease runs out, or None if there is none."""
        soonest, *found = self._redis.run(steps.ORPHANS, [names.JOBS], ["fedq:job:", _ms(ANNOUNCED)])
        return found, None if int(soonest) < 0 else int(soonest) / 1000

    def drop_owners(self, known: int) -> None:
        """Fences every owner that claimed its job at `known` (ms, Redis's clock) or before.

        For use when Redis has gone back in time and may lack what those owners know. An owner that claimed a job
        after that has a later fence, and keeps it.
        """
        self._redis.run(steps.DROP_OWNERS, [names.JOBS], ["fedq:job:", known])

    def want(self, job: str, wanted: Wanted) -> str:
        """Records an operator's request; answers ok, unknown, or the status of a job that has ended."""
        return str(self._redis.run(steps.WANT, [names.job_key(job)], [wanted.status, wanted.reason]))

    def revive(self, job: str, rounds: int) -> str:
        """Queues a job again that has ended or is paused; answers ok, unknown, or conflict if it is live."""
        record = self.job(job)
        number = record.round + 1 if record else 0
        return str(self._redis.run(steps.REVIVE, [names.job_key(job), *_round_keys(job, number)], [rounds]))

    def restore(self, record: JobRecord) -> bool:
        """Records a job as the object store knows it; false if Redis knows it already."""
        fields = {
            "status": record.status,
            "detail": record.detail,
            "round": record.round,
            "rounds": record.rounds,
            "created": _ms(record.created),
            "metrics": json.dumps(record.metrics),
            "wanted": record.wanted.status,
            "reason": record.wanted.reason,
        }
        fields |= {name: _ms(at) for name, at in (("started", record.started), ("ended", record.ended)) if at}
        flat = [part for pair in fields.items() for part in pair]
        answer = self._redis.run(steps.RESTORE, [names.job_key(record.id), names.JOBS], [record.id, *flat])
        return bool(answer == "ok")

    def advance(self, job: str, fence: int, number: int, came_to: Totals = NOTHING) -> None:
        """Records round `number` as committed, whatever Redis knew: the store has its manifest."""
        record = self.job(job)
        self._step(steps.ADVANCE, job, [names.job_key(job), names.TOTALS], [fence, number, *_amounts(came_to)])
        for old in range(max(0, record.round if record else 0), number + 1):
            self.drop_round(job, old)

    def describe(self, job: str, fence: int, status: str, detail: str) -> None:
        """Records what a running job does or waits for."""
        self._step(steps.DESCRIBE, job, [names.job_key(job)], [fence, status, detail])

    def end(self, job: str, fence: int, status: str, detail: str) -> None:
        """Ends a job: finished, stopped or failed."""
        self._step(steps.END, job, [names.job_key(job)], [fence, status, detail])

    def set_metrics(self, job: str, fence: int, metrics: Mapping[str, float]) -> None:
        """Keeps the latest figures of the model."""
        self._step(steps.METRICS, job, [names.job_key(job)], [fence, json.dumps(metrics)])

    def jobs(self) -> list[JobRecord]:
        """Every job, the newest first."""
        found = (self.job(job) for job in self._redis.zrevrange(names.JOBS, 0, -1))
        return [record for record in found if record is not None]

    def newest(self) -> str | None:
        """The id of the job that was started last; None if Redis knows no job."""
        return next(iter(self._redis.zrevrange(names.JOBS, 0, 0)), None)

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
            wanted=_wanted((row.get("wanted"), row.get("reason"))),
            waiting=_seconds(row.get("waiting")),
            claims=int(row.get("claims", 0)),
            lease=_seconds(row.get("lease")),
        )

    def required(self, job: str) -> JobRecord:
        """The job that a user asked for, or `BadInput` if there is none."""
        record = self.job(job)
        if record is None:
            raise BadInput(f"there is no job {job or repr(job)}; `fedq jobs` lists them")
        return record

    # --- what went wrong ------------------------------------------------------------------------

    def note(self, fault: str, detail: str, job: str | None = None, number: int = -1) -> None:
        """Counts a fault and, if it belongs to a job, writes it into the job's log."""
        self.note_all(fault, [detail], job, number)

    def note_all(self, fault: str, details: Sequence[str], job: str | None = None, number: int = -1) -> None:
        """Counts a fault once for each detail, and writes one line of the job's log for each."""
        keys = [names.FAULTS] + ([names.log_key(job)] if job else [])
        self._redis.run(steps.NOTE, keys, [fault, number, LOG, *(detail[:1000] for detail in details)])

    def log(self, job: str) -> list[dict[str, Any]]:
        """The job's log, the oldest first: `at` (seconds since the epoch), `fault`, `round`, `detail`."""
        return [json.loads(line) for line in self._redis.lrange(names.log_key(job), 0, -1)]

    def faults(self) -> dict[str, int]:
        """The number of times that each fault was seen."""
        return {fault: int(count) for fault, count in sorted(self._redis.hgetall(names.FAULTS).items())}

    def pulse(self, aggregator: str, known: int) -> tuple[int, int]:
        """Times of this aggregator's last call (-1: Redis does not know it) and of this one; ms by Redis's clock.

        This call is recorded unless the caller has `known` of a later one: then Redis went back in time.
        """
        before, now = self._redis.run(steps.PULSE, [names.pulse_key(aggregator)], [known])
        return int(before), int(now)

    # --- rounds -------------------------------------------------------------------------------

    def open_round(
        self,
        job: str,
        fence: int,
        number: int,
        attempt: int,
        cohort: tuple[str, ...],
        seconds: float,
        carried: Mapping[str, int] = {},
        target: int | None = None,
    ) -> float:
        """Opens the round after the last committed one; returns its deadline.

        The round closes with `target` updates; without a target, with those of the whole cohort.
        """
        staged = names.staged_key(job, number, fence)
        last = max(0, (len(cohort) - 1) // PIECE * PIECE)  # clients from here on travel with the opening call
        for start in range(0, last, PIECE):
            piece = cohort[start : start + PIECE]
            self._step(steps.STAGE, job, [names.job_key(job), staged], [fence, start, *piece])
        wanted = len(cohort) if target is None else target
        about = [fence, last, number, attempt, _ms(seconds), json.dumps(dict(carried)), wanted]
        keys = [names.job_key(job), *_round_keys(job, number), staged]
        return float(self._step(steps.OPEN, job, keys, [*about, *cohort[last:]])) / 1000

    def extend(self, job: str, fence: int, number: int, seconds: float, limit: float) -> float:
        """Gives an open round `seconds` from now, at most `limit` from its opening; returns the seconds left."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        return float(self._step(steps.EXTEND, job, keys, [fence, _ms(seconds), _ms(limit)])) / 1000

    def accept(self, job: str, fence: int, number: int, client: str, update: Mapping[str, Any]) -> str:
        """Counts a client's update, at most once; answers ok, duplicate, late or stranger."""
        return self.accept_all(job, fence, number, {client: update})

    def accept_all(self, job: str, fence: int, number: int, updates: Mapping[str, Mapping[str, Any]]) -> str:
        """Counts the updates of several clients, all or none; answers as `accept`, for the first one that fails."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        pairs = [part for client, update in updates.items() for part in (client, json.dumps(update))]
        return str(self._step(steps.ACCEPT, job, keys, [fence, *pairs]))

    def admission(self, job: str, number: int, client: str) -> str:
        """The answer that an update of `client` would get now: ok, duplicate, late or stranger; changes nothing."""
        return str(self._redis.run(steps.ADMISSION, list(_round_keys(job, number)), [client]))

    def reject(self, job: str, fence: int, number: int, client: str, reason: str) -> None:
        """Records the reason why a client's update is not in the round; an earlier reason stays."""
        self.reject_all(job, fence, number, {client: reason})

    def reject_all(self, job: str, fence: int, number: int, reasons: Mapping[str, str]) -> None:
        """Records the reasons of several clients, in one call because a batch would wait for one call per client."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        self._step(steps.REJECT, job, keys, [fence, *(part for pair in reasons.items() for part in pair)])

    def exclude(self, job: str, fence: int, number: int, client: str, reason: str) -> None:
        """Removes an accepted update that is no longer available, and records the reason."""
        keys = [names.job_key(job), *_round_keys(job, number)]
        self._step(steps.EXCLUDE, job, keys, [fence, client, reason])

    def accepted(self, job: str, number: int, clients: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Entries of the counted updates, for those of these clients that have one."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(clients), PIECE):
            piece = clients[start : start + PIECE]
            said = dict(zip(piece, self._redis.hmget(names.accepted_key(job, number), *piece), strict=True))
            there = {client: text for client, text in said.items() if text}
            found.update(zip(there, _read(there.values()), strict=True))
        return found

    def close_round(self, job: str, fence: int, number: int, counted: int = 0) -> RoundRecord:
        """Freezes the set of accepted updates and returns the round; a repeated call returns the same.

        Raises `LedgerLost` if Redis holds fewer updates than the caller has `counted`.
        """
        self._step(steps.CLOSE, job, [names.job_key(job), *_round_keys(job, number)], [fence, counted])
        record = self.round(job, number)
        if record is None:
            raise LedgerLost(f"Redis has lost the record of round {number} of {job}")
        return record

    def commit_round(self, job: str, fence: int, number: int, came_to: Totals = NOTHING) -> None:
        """Records the round as the job's last committed one: its model and manifest are in the store."""
        keys = [names.job_key(job), *_round_keys(job, number), names.TOTALS]
        self._step(steps.COMMIT, job, keys, [fence, number, *_amounts(came_to)])

    def fail_round(self, job: str, fence: int, number: int, reason: str, came_to: Totals = NOTHING) -> None:
        """Records that this attempt at the round ended without a model."""
        keys = [names.job_key(job), *_round_keys(job, number), names.TOTALS]
        self._step(steps.FAIL, job, keys, [fence, reason, *_amounts(came_to)])

    def drop_round(self, job: str, number: int) -> None:
        """Deletes a committed round, whose manifest is the record; Redis frees the memory in the background."""
        self._redis.unlink(*_round_keys(job, number))

    def round(self, job: str, number: int) -> RoundRecord | None:
        row = self._redis.hgetall(names.round_key(job, number))
        if not row:
            return None
        cohort = tuple(self._cohort(names.cohort_key(job, number)))
        accepted = self.accepted(job, number, cohort)
        return RoundRecord(
            number=number,
            state=row["state"],
            attempt=int(row["attempt"]),
            cohort=cohort,
            opened=_seconds(row["opened"]),
            deadline=_seconds(row["deadline"]),
            accepted={client: accepted[client] for client in sorted(accepted)},
            rejected=dict(sorted(self._pairs(names.rejected_key(job, number)))),
            reason=row.get("reason", ""),
            carried=json.loads(row.get("carried", "{}")),
            target=int(row.get("target", 0)),
        )

    def progress(self, job: str, number: int) -> Progress | None:
        """Progress of a round that has begun and is not committed; None for any other round."""
        state, target = self._redis.hmget(names.round_key(job, number), "state", "target")
        if state not in ("open", "closed"):
            return None
        return Progress(int(self._redis.hlen(names.accepted_key(job, number))), int(target or 0))

    def totals(self) -> Totals:
        """Totals of all rounds that have ended since Redis began to count."""
        return Totals.read(self._redis.hgetall(names.TOTALS))

    def now(self) -> float:
        """Redis's clock, in seconds since the epoch."""
        seconds, micros = self._redis.time()
        return float(seconds + micros / 1e6)

    def server(self) -> str:
        """Product and version of the server."""
        return f"Redis {self._redis.info('server')['redis_version']}"

    def _cohort(self, key: str) -> Iterator[str]:
        """A round's clients in the order of their places, read in pieces."""
        start = 0
        while piece := self._redis.zrange(key, start, start + PIECE - 1):
            yield from piece
            start += len(piece)
            if len(piece) < PIECE:
                return

    def _pairs(self, key: str) -> Iterator[tuple[str, str]]:
        """Fields of a hash, read in pieces; a field that exists throughout comes at least once, perhaps twice."""
        cursor = 0
        while True:
            cursor, piece = self._redis.hscan(key, cursor, count=PIECE)
            yield from piece.items()
            if not int(cursor):
                return

    def _step(self, script: Script, job: str, keys: list[str], args: list[Any]) -> Any:
        answer = self._redis.run(script, keys, args)
        if answer == "fenced":
            raise Fenced(f"job {job} belongs to another aggregator now")
        if answer == "lost":
            raise LedgerLost(f"Redis has lost the record of job {job}")
        if answer == "conflict":
            raise Conflict(f"job {job} has moved on")
        return answer


def _read(texts: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of these texts; a part that several share, such as the blob of a batch, is in memory only once."""
    known: dict[str, dict[str, Any]] = {}

    def once(found: dict[str, Any]) -> dict[str, Any]:
        if any(isinstance(value, dict | list) for value in found.values()):
            return found
        return known.setdefault(repr(found), found)  # by its text, because 1 == 1.0 == True

    read: list[dict[str, Any]] = json.loads(f"[{','.join(texts)}]", object_hook=once)
    return read


def _round_keys(job: str, number: int) -> tuple[str, str, str, str]:
    return (
        names.round_key(job, number),
        names.accepted_key(job, number),
        names.rejected_key(job, number),
        names.cohort_key(job, number),
    )


def _amounts(came_to: Totals) -> list[Any]:
    return [part for pair in came_to.fields().items() for part in pair]


def _seconds(milliseconds: str | None) -> float:
    return int(milliseconds or 0) / 1000


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _wanted(found: Any) -> Wanted:
    status, reason = found
    return Wanted(status or "running", reason or "")
