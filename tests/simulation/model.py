"""The referee without Redis: the rules of `shared.redis.scripts` in Python, over plain dicts and a clock that is given.

`test_ledger_model` holds the two together, call by call and key by key. Values are strings as Redis keeps them, so that
the code of `shared.redis.ledger` itself runs over either.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared.redis import scripts as steps
from shared.redis.client import Script
from shared.redis.ledger import ENDED, Ledger

CLAIMABLE = ("queued", "waiting", "running")

Hash = dict[str, str]
Keys = list[str]
Clock = Callable[[], float]


@dataclass
class Data:
    """All that the database holds."""

    hashes: dict[str, Hash] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    expiring: set[str] = field(default_factory=set)

    def at(self, key: str) -> Hash:
        """The hash at `key`, made where it is to be written."""
        return self.hashes.setdefault(key, {})

    def get(self, key: str) -> Hash:
        return self.hashes.get(key, {})

    def delete(self, *keys: str) -> None:
        for key in keys:
            for kind in (self.hashes, self.lists, self.strings, self.scores):
                kind.pop(key, None)  # type: ignore[attr-defined]
            self.expiring.discard(key)

    def unrank(self, key: str, name: str) -> None:
        """Takes a name out of a sorted set, which goes with its last one."""
        scores = self.scores.get(key, {})
        scores.pop(name, None)
        if not scores:
            self.delete(key)


class Refusal(Exception):
    """A rule's answer before its end."""


def create(data: Data, now: int, keys: Keys, job: str, rounds: str) -> str:
    if keys[0] in data.hashes:
        return "duplicate"
    data.hashes[keys[0]] = {
        "status": "queued",
        "detail": "waiting for an aggregator",
        "round": "-1",
        "rounds": rounds,
        "fence": "0",
        "lease": "0",
        "created": str(now),
        "announced": str(now),
        "wanted": "running",
    }
    data.scores.setdefault(keys[1], {})[job] = now
    return "ok"


def claim(data: Data, now: int, keys: Keys, owner: str, lease: str) -> str | int:
    job = data.get(keys[0])
    if not job:
        return "unknown"
    if job["status"] not in CLAIMABLE:
        return job["status"]
    if int(job["lease"]) > now:
        return f"owned by {job['owner']}"
    fence = max(now, int(job["fence"]) + 1)
    job |= {"status": "running", "detail": "", "owner": owner, "lease": str(now + int(lease)), "fence": str(fence)}
    job.setdefault("started", str(now))
    job["claims"] = str(int(job.get("claims", 0)) + 1)
    return fence


def renew(data: Data, now: int, keys: Keys, fence: str, lease: str) -> list[str | None]:
    job = owned(data, keys, fence)
    job["lease"] = str(now + int(lease))
    return [job.get("wanted"), job.get("reason")]


def release(data: Data, now: int, keys: Keys, fence: str, status: str, detail: str) -> str:
    job = owned(data, keys, fence)
    if status == "paused" and job.get("wanted") != "paused":
        status, detail = "queued", "waiting for an aggregator"
    job.update(status=status, detail=detail, lease="0")
    if int(job.get("claims", 0)) > 0:
        job["claims"] = str(int(job["claims"]) - 1)
    return status


def orphans(data: Data, now: int, keys: Keys, prefix: str, announced: str) -> list[Any]:
    found, left = [], []
    known = data.scores.get(keys[0], {})
    for name in sorted(known, key=lambda name: (known[name], name)):
        job = data.get(prefix + name)
        if job.get("status") not in CLAIMABLE:
            continue
        free = int(job["lease"])
        if job["status"] == "queued" and not free and int(job["fence"]) < int(job.get("announced", 0)):
            free = int(job["announced"]) + int(announced)
        if free <= now:
            found.append(name)
        else:
            left.append(free - now)
    return [min(left, default=-1), *found]


def drop_owners(data: Data, now: int, keys: Keys, prefix: str, known: str) -> str:
    for name in data.scores.get(keys[0], {}):
        job = data.get(prefix + name)
        if job.get("status") in CLAIMABLE and 0 < int(job["fence"]) <= int(known):
            job.update(lease="0", fence=str(max(now, int(job["fence"]) + 1)))
    return "ok"


def want(data: Data, now: int, keys: Keys, wanted: str, reason: str) -> str:
    job = data.get(keys[0])
    if not job:
        return "unknown"
    if job["status"] in ENDED:
        return job["status"]
    job.update(wanted=wanted, reason=reason)
    return "ok"


def remove(data: Data, now: int, keys: Keys, job: str) -> str:
    status = data.get(keys[0]).get("status")
    if status in CLAIMABLE:
        return str(status)
    data.delete(keys[0])
    data.unrank(keys[1], job)
    return "ok"


def revive(data: Data, now: int, keys: Keys, rounds: str) -> str:
    job = data.get(keys[0])
    if not job:
        return "unknown"
    if job["status"] in CLAIMABLE:
        return "conflict"
    if job["status"] != "paused":
        data.delete(*keys[1:])
    job.update(status="queued", detail="waiting for an aggregator", lease="0", announced=str(now), rounds=rounds)
    job.update(wanted="running", reason="", claims="0")
    job.pop("ended", None)
    job.pop("waiting", None)
    return "ok"


def restore(data: Data, now: int, keys: Keys, job: str, *fields: str) -> str:
    if keys[0] in data.hashes:
        return "duplicate"
    data.hashes[keys[0]] = {"fence": str(now + 1), "lease": "0", "announced": "0"}
    data.hashes[keys[0]].update(zip(fields[::2], fields[1::2], strict=True))
    data.scores.setdefault(keys[1], {})[job] = int(data.hashes[keys[0]]["created"]) or now
    return "ok"


def advance(data: Data, now: int, keys: Keys, fence: str, number: str, *amounts: str) -> str:
    job = owned(data, keys, fence)
    if int(job["round"]) < int(number):
        job.update(round=number, claims="0")
        count(data, keys[1], amounts)
    return "ok"


def describe(data: Data, now: int, keys: Keys, fence: str, status: str, detail: str) -> str:
    job = owned(data, keys, fence)
    job.update(status=status, detail=detail)
    if status == "waiting":
        job.setdefault("waiting", str(now))
    else:
        job.pop("waiting", None)
    return "ok"


def metrics(data: Data, now: int, keys: Keys, fence: str, figures: str) -> str:
    owned(data, keys, fence)["metrics"] = figures
    return "ok"


def check_owned(data: Data, now: int, keys: Keys, fence: str) -> str:
    owned(data, keys, fence)
    return "ok"


def end(data: Data, now: int, keys: Keys, fence: str, status: str, detail: str) -> str:
    owned(data, keys, fence).update(status=status, detail=detail, ended=str(now), lease="0")
    return "ok"


def note(data: Data, now: int, keys: Keys, fault: str, number: str, most: str, *details: str) -> str:
    counts = data.at(keys[0])
    counts[fault] = str(int(counts.get(fault, 0)) + len(details))
    if keys[1:]:
        lines = data.lists.setdefault(keys[1], [])
        told = ({"at": now / 1000, "fault": fault, "round": int(number), "detail": detail} for detail in details)
        lines.extend(map(json.dumps, told))
        del lines[: -int(most)]
    return "ok"


def pulse(data: Data, now: int, keys: Keys, known: str) -> list[str]:
    before = data.strings.get(keys[0], "-1")
    if int(before) >= int(known):
        data.strings[keys[0]] = str(now)
        data.expiring.add(keys[0])
    return [before, str(now)]


def stage(data: Data, now: int, keys: Keys, fence: str, first: str, *cohort: str) -> str:
    owned(data, keys, fence)
    if first == "0":
        data.delete(keys[1])
    place(data, keys[1], first, cohort)
    data.expiring.add(keys[1])
    return "ok"


def open_round(
    data: Data,
    now: int,
    keys: Keys,
    fence: str,
    first: str,
    number: str,
    attempt: str,
    ms: str,
    carried: str,
    target: str,
    *cohort: str,
) -> int:
    job = owned(data, keys, fence)
    conflict(int(job["round"]) != int(number) - 1)
    conflict(data.get(keys[1]).get("state") in ("closed", "committed"))
    lost(len(data.scores.get(keys[5], {})) < int(first))
    deadline = now + int(ms)
    data.at(keys[1]).update(
        state="open",
        attempt=attempt,
        carried=carried,
        target=target,
        opened=str(now),
        deadline=str(deadline),
    )
    job.update(status="running", detail=f"round {number} of {job['rounds']}")
    job.pop("waiting", None)
    data.expiring.discard(keys[1])
    data.delete(*keys[2:5])
    if int(first):
        data.scores[keys[4]] = data.scores.pop(keys[5])
        data.expiring.discard(keys[5])
    place(data, keys[4], first, cohort)
    return deadline


def place(data: Data, key: str, first: str, cohort: tuple[str, ...]) -> None:
    """Adds clients of a cohort by their places."""
    for number, client in enumerate(cohort, int(first)):
        data.scores.setdefault(key, {})[client] = number


def extend(data: Data, now: int, keys: Keys, fence: str, ms: str, limit: str) -> int:
    owned(data, keys, fence)
    row = data.get(keys[1])
    lost(not row)
    conflict(row["state"] != "open")
    deadline = max(int(row["deadline"]), min(now + int(ms), int(row["opened"]) + int(limit)))
    row["deadline"] = str(deadline)
    return max(0, deadline - now)


def admission(data: Data, now: int, keys: Keys, client: str) -> str:
    row = data.get(keys[0])
    if row.get("state") != "open" or int(row["deadline"]) < now:
        return "late"
    if client not in data.scores.get(keys[3], {}):
        return "stranger"
    return "duplicate" if client in data.get(keys[1]) else "ok"


def accept(data: Data, now: int, keys: Keys, fence: str, *pairs: str) -> str:
    owned(data, keys, fence)
    updates = dict(zip(pairs[::2], pairs[1::2], strict=True))
    for client in updates:
        answer = admission(data, now, keys[1:], client)
        if answer != "ok":
            return answer
    data.at(keys[2]).update(updates)
    return "ok"


def reject(data: Data, now: int, keys: Keys, fence: str, *reasons: str) -> str:
    owned(data, keys, fence)
    for client, reason in zip(reasons[::2], reasons[1::2], strict=True):
        data.at(keys[3]).setdefault(client, reason)
    return "ok"


def exclude(data: Data, now: int, keys: Keys, fence: str, client: str, reason: str) -> str:
    owned(data, keys, fence)
    conflict(data.get(keys[1]).get("state") != "open")
    if data.get(keys[2]).pop(client, None) is not None:
        data.at(keys[3])[client] = reason
        if not data.get(keys[2]):
            data.delete(keys[2])
    return "ok"


def close(data: Data, now: int, keys: Keys, fence: str, counted: str) -> str:
    owned(data, keys, fence)
    row, accepted = data.get(keys[1]), data.get(keys[2])
    lost(not row)
    if row["state"] not in ("closed", "committed"):
        conflict(row["state"] != "open")
        lost(len(accepted) < int(counted))
        row["state"] = "closed"
    return "ok"


def commit(data: Data, now: int, keys: Keys, fence: str, number: str, *amounts: str) -> str:
    job = owned(data, keys, fence)
    state = data.get(keys[1]).get("state")
    conflict(state not in ("closed", "committed"))
    if state == "closed":
        data.get(keys[1])["state"] = "committed"
        job.update(round=number, claims="0")
        count(data, keys[5], amounts)
    return "ok"


def fail(data: Data, now: int, keys: Keys, fence: str, reason: str, *amounts: str) -> str:
    owned(data, keys, fence)
    row = data.get(keys[1])
    lost(not row)
    conflict(row["state"] == "committed")
    if row["state"] != "failed":
        count(data, keys[5], amounts)
    row.update(state="failed", reason=reason)
    data.expiring |= {key for key in keys[1:5] if key in data.hashes or key in data.scores}
    return "ok"


def count(data: Data, key: str, amounts: tuple[str, ...]) -> None:
    """Adds to the totals."""
    for name, amount in zip(amounts[::2], amounts[1::2], strict=True):
        totals = data.at(key)
        totals[name] = str(int(totals.get(name, 0)) + int(amount))


def owned(data: Data, keys: Keys, fence: str) -> Hash:
    """The job's hash, where the caller still owns it."""
    job = data.get(keys[0])
    lost(not job)
    if job["fence"] != fence:
        raise Refusal("fenced")
    return job


def lost(condition: bool) -> None:
    if condition:
        raise Refusal("lost")


def conflict(condition: bool) -> None:
    if condition:
        raise Refusal("conflict")


Rule = Callable[..., Any]

RULES: dict[Script, Rule] = {
    steps.CREATE: create,
    steps.CLAIM: claim,
    steps.RENEW: renew,
    steps.RELEASE: release,
    steps.ORPHANS: orphans,
    steps.DROP_OWNERS: drop_owners,
    steps.WANT: want,
    steps.REMOVE: remove,
    steps.REVIVE: revive,
    steps.RESTORE: restore,
    steps.ADVANCE: advance,
    steps.DESCRIBE: describe,
    steps.METRICS: metrics,
    steps.OWNED: check_owned,
    steps.END: end,
    steps.NOTE: note,
    steps.PULSE: pulse,
    steps.STAGE: stage,
    steps.OPEN: open_round,
    steps.EXTEND: extend,
    steps.ADMISSION: admission,
    steps.ACCEPT: accept,
    steps.REJECT: reject,
    steps.EXCLUDE: exclude,
    steps.CLOSE: close,
    steps.COMMIT: commit,
    steps.FAIL: fail,
}


class ModelRedis:
    """As much of `shared.redis.client.Redis` as the ledger asks of it."""

    def __init__(self, clock: Clock, rules: dict[Script, Rule]) -> None:
        self.data = Data()
        self._clock = clock
        self._rules = rules

    def run(self, script: Script, keys: Keys, args: list[Any]) -> Any:
        try:
            return self._rules[script](self.data, round(self._clock() * 1000), keys, *map(str, args))
        except Refusal as answer:
            return str(answer)

    def hgetall(self, key: str) -> Hash:
        return dict(self.data.get(key))

    def hscan(self, key: str, cursor: int, count: int) -> tuple[int, Hash]:
        assert cursor == 0
        assert count
        return 0, self.hgetall(key)

    def hmget(self, key: str, *names: str) -> list[str | None]:
        return [self.data.get(key).get(name) for name in names]

    def hlen(self, key: str) -> int:
        return len(self.data.get(key))

    def lrange(self, key: str, start: int, stop: int) -> list[str]:
        assert (start, stop) == (0, -1)
        return list(self.data.lists.get(key, []))

    def zrange(self, key: str, start: int, stop: int) -> list[str]:
        scores = self.data.scores.get(key, {})
        return sorted(scores, key=lambda name: (scores[name], name))[start : stop + 1]

    def zrevrange(self, key: str, start: int, stop: int) -> list[str]:
        assert start == 0
        scores = self.data.scores.get(key, {})
        found = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
        return found[: stop + 1] if stop >= 0 else found

    def scan(self, cursor: int, match: str, count: int) -> tuple[int, list[str]]:
        assert cursor == 0
        assert count
        data = self.data
        keys = (*data.hashes, *data.lists, *data.strings, *data.scores)
        return 0, [key for key in keys if key.startswith(match.removesuffix("*"))]

    def zrem(self, key: str, name: str) -> None:
        self.data.unrank(key, name)

    def delete(self, *keys: str) -> None:
        self.data.delete(*keys)

    unlink = delete

    def time(self) -> tuple[int, int]:
        milliseconds = round(self._clock() * 1000)
        return milliseconds // 1000, milliseconds % 1000 * 1000


class ModelLedger(Ledger):
    """The ledger over the rules; it can be flushed, and thrown back to an earlier state."""

    def __init__(self, clock: Clock, rules: dict[Script, Rule] = RULES) -> None:
        self.model = ModelRedis(clock, rules)
        super().__init__(self.model)  # type: ignore[arg-type]

    def flush(self) -> None:
        self.model.data = Data()

    def snapshot(self) -> Data:
        return copy.deepcopy(self.model.data)

    def rollback(self, snapshot: Data) -> None:
        self.model.data = copy.deepcopy(snapshot)
