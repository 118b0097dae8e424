"""The rules in Lua on a real Redis, and the rules in Python: any list of calls has the same answers and the same end.

Redis's clock is given to both, so that what happens exactly at a deadline, and hours later, is compared as well.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from shared.errors import FedqError
from shared.process.settings import Record
from shared.redis import ledger as ledgers
from shared.redis import scripts as steps
from shared.redis.client import Redis, Script
from shared.redis.ledger import JobRecord, Ledger, Sum, Totals, Wanted
from tests.conftest import Servers
from tests.simulation import model
from tests.simulation.model import RULES, Data, ModelLedger, Rule

START = 1_700_000_000_000  #: ms since the epoch
CLOCK = "test:clock"
READ_TIME = "local t = redis.call('TIME')\n  return t[1] * 1000 + math.floor(t[2] / 1000)\n"

JOBS = ("a-abc234", "b-abc234")
COHORT = ("a", "b")

#: A list of calls begins with a part of this, so that many come far into the life of a job.
STORY: list[tuple[Any, ...]] = [
    ("create", JOBS[0], 2),
    ("claim", JOBS[0], "one", 20.0),
    ("open_round", JOBS[0], "last", 0, 1, COHORT, 10.0),
    ("accept", JOBS[0], "last", 0, "a", {"n": 1}),
    ("close_round", JOBS[0], "last", 0, 1),
    ("commit_round", JOBS[0], "last", 0),
    ("open_round", JOBS[0], "last", 1, 1, COHORT, 10.0),
    ("accept", JOBS[0], "last", 1, "a", {"n": 2}),
    ("save",),
    ("accept", JOBS[0], "last", 1, "b", {"n": 3}),
    ("close_round", JOBS[0], "last", 1, 2),
    ("end", JOBS[0], "last", "finished", ""),
]


def kept(job: str, number: int, status: str) -> JobRecord:
    """A job as the object store may have it."""
    times = {"created": START / 1000 if number else 0.0, "started": float(number), "ended": float(status == "failed")}
    return JobRecord(job, status, "", number, 2, "", 0, metrics={"loss": 0.5}, wanted=Wanted("paused", "x"), **times)


job = st.sampled_from([JOBS[0], JOBS[0], JOBS[0], JOBS[1]])
fence = st.sampled_from(["last"] * 5 + ["first", "none"])
number = st.sampled_from([0, 1, 1, 1, 2])
client = st.sampled_from(["a", "b", "z"])
few = st.integers(0, 2)
text = st.sampled_from(["", "why", "ü"])
seconds = st.sampled_from([0.0, 0.001, 10.0, 10.0, 20.0, 30.0, 3600.0])
moment = st.sampled_from([-1, -1, START, START + 10_000, 2**62])
sums = st.dictionaries(st.sampled_from(["x", "y"]), st.builds(Sum, few, st.sampled_from([0.0, 0.25, 7.0])))
totals = st.builds(Totals, sums, sums, st.dictionaries(st.sampled_from(["x", "y"]), few))
wanted = st.builds(Wanted, st.sampled_from(["running", "paused", "stopped"]), text)

CALLS: dict[str, tuple[SearchStrategy[Any], ...]] = {
    "create": (job, few),
    "forget": (job,),
    "claim": (job, st.sampled_from(["one", "two"]), seconds),
    "renew": (job, fence, seconds),
    "check_owned": (job, fence),
    "release": (job, fence, st.sampled_from(["queued", "paused"]), text),
    "orphans": (),
    "drop_owners": (moment,),
    "want": (job, wanted),
    "revive": (job, few),
    "remove": (job,),
    "newest": (),
    "restore": (st.builds(kept, job, number, st.sampled_from(["queued", "paused", "failed"])),),
    "advance": (job, fence, number, totals),
    "describe": (job, fence, st.sampled_from(["running", "waiting"]), text),
    "end": (job, fence, st.sampled_from(["finished", "failed"]), text),
    "set_metrics": (job, fence, st.just({"loss": 0.25})),
    "jobs": (),
    "job": (job,),
    "required": (job,),
    "note": (st.sampled_from(["late", "lost"]), text, st.none() | job, number),
    "note_all": (st.sampled_from(["late", "lost"]), st.lists(text, min_size=1, max_size=3), st.none() | job, number),
    "log": (job,),
    "faults": (),
    "pulse": (st.sampled_from(["one", "two"]), moment),
    "open_round": (
        job,
        fence,
        number,
        st.integers(1, 2),
        st.just(COHORT),
        seconds,
        st.sampled_from([{}, {"b": 1}]),
        st.none() | few,
    ),
    "extend": (job, fence, number, seconds, seconds),
    "accept": (job, fence, number, client, st.fixed_dictionaries({"n": few})),
    "accept_all": (
        job,
        fence,
        number,
        st.dictionaries(client, st.fixed_dictionaries({"n": few}), min_size=1, max_size=3),
    ),
    "admission": (job, number, client),
    "reject": (job, fence, number, client, text),
    "reject_all": (job, fence, number, st.dictionaries(client, text, min_size=1, max_size=3)),
    "exclude": (job, fence, number, client, text),
    "accepted": (job, number, st.lists(client, min_size=1, max_size=3, unique=True)),
    "close_round": (job, fence, number, few),
    "commit_round": (job, fence, number, totals),
    "fail_round": (job, fence, number, text, totals),
    "drop_round": (job, number),
    "round": (job, number),
    "progress": (job, number),
    "totals": (),
    "now": (),
}
OTHER: dict[str, tuple[SearchStrategy[Any], ...]] = {
    "pass": (seconds,),
    "flush": (),
    "save": (),
    "rollback": (),
}
OFTEN = ("pass", "claim", "open_round", "accept", "accept_all", "close_round", "extend", "orphans")
call = st.one_of(
    [
        st.tuples(st.just(name), *arguments)
        for name, arguments in (CALLS | OTHER).items()
        for _ in range(4 if name in OFTEN else 1)
    ]
)
lists = st.builds(
    lambda length, calls: STORY[:length] + calls,
    st.integers(0, len(STORY)),
    st.lists(call, max_size=40),
)


def test_every_method_and_every_rule_is_compared() -> None:
    """What the ledger learns, this test learns too."""
    public = {name for name in vars(Ledger) if not name.startswith("_")}
    scripts = {value for value in vars(steps).values() if isinstance(value, Script)}

    assert public - {"server"} == set(CALLS)
    assert scripts == set(RULES)


# --- both sides ---------------------------------------------------------------------------------


@dataclass
class Clock:
    """Milliseconds since the epoch."""

    now: int = START

    def __call__(self) -> float:
        return self.now / 1000


class TimedRedis:
    """A real Redis whose scripts read a clock of ours."""

    def __init__(self, real: Redis, driver: "redis.Redis[str]", clock: Clock) -> None:
        self._real = real
        self._clock = clock
        self._driver = driver
        self._scripts: dict[Script, Script] = {}
        self._told = 0  # the time that the server has

    def run(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        if self._told != self._clock.now:
            self._driver.set(CLOCK, self._clock.now)
            self._told = self._clock.now
        return self._real.run(self._timed(script), keys, args)

    def flush(self) -> None:
        self._driver.flushdb()
        self._told = 0

    def _timed(self, script: Script) -> Script:
        if script not in self._scripts:
            text = script._text.replace(READ_TIME, f"return tonumber(redis.call('GET', '{CLOCK}'))\n")
            assert "'TIME'" not in text
            self._scripts[script] = Script(text)
        return self._scripts[script]

    def time(self) -> tuple[int, int]:
        return self._clock.now // 1000, self._clock.now % 1000 * 1000

    def __getattr__(self, command: str) -> Any:
        return getattr(self._real, command)


@dataclass
class Both:
    """The real ledger and its model, told the same things."""

    clock: Clock
    ledger: Ledger
    timed: TimedRedis
    driver: "redis.Redis[str]"
    dumping: "redis.Redis[bytes]"
    twin: ModelLedger
    fences: dict[str, list[int]] = field(default_factory=dict)
    saved: tuple[dict[bytes, tuple[int, bytes]], Data] = field(default_factory=lambda: ({}, Data()))

    def run(self, calls: list[tuple[Any, ...]]) -> None:
        """Compares each answer, and at the end all that there is."""
        for name, *arguments in calls:
            match name:
                case "pass":
                    self.clock.now += int(arguments[0] * 1000)
                case "flush":
                    self.timed.flush()
                    self.twin.flush()
                case "save":
                    self.saved = self._dump(), self.twin.snapshot()
                case "rollback":
                    self.timed.flush()
                    for key, (ttl, value) in self.saved[0].items():
                        self.dumping.restore(key, max(0, ttl), value)
                    self.twin.rollback(self.saved[1])
                case _:
                    self._compare(name, [self._resolved(arguments, given) for given in arguments])
        assert self._real_state() == self._model_state()

    def _compare(self, name: str, arguments: list[Any]) -> None:
        real = answer(lambda: getattr(self.ledger, name)(*arguments))
        assert real == answer(lambda: getattr(self.twin, name)(*arguments)), f"{name}{tuple(arguments)}"
        if name == "claim" and isinstance(real, int):
            self.fences.setdefault(arguments[0], []).append(real)

    def _resolved(self, arguments: list[Any], given: Any) -> Any:
        known = self.fences.get(arguments[0], []) if arguments and isinstance(arguments[0], str) else []
        return (
            {"last": (known or [1])[-1], "first": (known or [1])[0], "none": 7}.get(given, given)
            if isinstance(given, str)
            else given
        )

    def _dump(self) -> dict[bytes, tuple[int, bytes]]:
        return {key: (self.dumping.pttl(key), self.dumping.dump(key)) for key in self.dumping.keys("fedq:*")}

    def _real_state(self) -> dict[str, Any]:
        read: dict[str, Callable[[str], Any]] = {
            "hash": self.driver.hgetall,
            "list": lambda key: self.driver.lrange(key, 0, -1),
            "string": self.driver.get,
            "zset": lambda key: dict(self.driver.zrange(key, 0, -1, withscores=True)),
        }
        keys = [key for key in self.driver.keys("fedq:*") if not key.endswith(":log")]  # floats in JSON: read by `log`
        found: dict[str, Any] = {key: read[self.driver.type(key)](key) for key in keys}
        return found | {"expiring": {key for key in keys if self.driver.ttl(key) >= 0}}

    def _model_state(self) -> dict[str, Any]:
        data = self.twin.model.data
        return data.hashes | data.strings | data.scores | {"expiring": data.expiring}


def answer(ask: Callable[[], Any]) -> Any:
    """What a call answers, or the class and the text of its error."""
    try:
        found = ask()
    except FedqError as error:
        return type(error), str(error)
    if isinstance(found, tuple) and isinstance(found[0], list):
        return sorted(found[0]), found[1]
    return found


@pytest.fixture
def compare(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs a list of calls on an empty Redis and on a model with the given rules; each cohort comes in two pieces."""
    monkeypatch.setattr(ledgers, "PIECE", 1)
    url = servers.settings(Record).redis_url.get_secret_value()
    driver = redis.Redis.from_url(url, decode_responses=True)
    dumping = redis.Redis.from_url(url)
    clock = Clock()
    timed = TimedRedis(servers.redis(), driver, clock)

    def run(calls: list[tuple[Any, ...]], rules: dict[Script, Rule] = RULES) -> None:
        timed.flush()
        clock.now = START
        ledger = Ledger(timed)  # type: ignore[arg-type]
        Both(clock, ledger, timed, driver, dumping, ModelLedger(clock, rules)).run(calls)

    yield run
    driver.close()
    dumping.close()


quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(calls=lists)
@settings(quick, max_examples=400)
def test_redis_and_the_model_agree(compare: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
    """On every answer, every error, and every key at the end, whatever is called in whatever order."""
    compare(calls)


# --- what it would find -------------------------------------------------------------------------


def unfenced(data: Data, now: int, keys: list[str], fence: str, *updates: str) -> str:
    return model.accept(data, now, keys, data.get(keys[0]).get("fence", fence), *updates)


def punctual(data: Data, now: int, keys: list[str], fence: str, *updates: str) -> str:
    return model.accept(data, now + 1, keys, fence, *updates)


def greedy(data: Data, now: int, keys: list[str], owner: str, lease: str) -> str | int:
    return model.claim(data, now + 1, keys, owner, lease)


def trusting(data: Data, now: int, keys: list[str], fence: str, counted: str) -> str:
    return model.close(data, now, keys, fence, "0")


def forgetful(data: Data, now: int, keys: list[str], rounds: str) -> str:
    return model.revive(data, now, [keys[0]], rounds)


def eager(data: Data, now: int, keys: list[str], fence: str, number: str, *amounts: str) -> str:
    answer = model.commit(data, now, keys, fence, number)
    model.count(data, keys[5], amounts)
    return answer


def impatient(data: Data, now: int, keys: list[str], prefix: str, announced: str) -> list[Any]:
    return model.orphans(data, now, keys, prefix, "29999")


PLANTED: dict[str, tuple[Script, Rule]] = {
    "a step that asks for no fence": (steps.ACCEPT, unfenced),
    "a deadline a millisecond early": (steps.ACCEPT, punctual),
    "a lease that ends a millisecond early": (steps.CLAIM, greedy),
    "a close that does not count": (steps.CLOSE, trusting),
    "an ended job revived with its old round": (steps.REVIVE, forgetful),
    "an orphan a millisecond early": (steps.ORPHANS, impatient),
    "a commit that is counted whenever it is asked": (steps.COMMIT, eager),
}


@pytest.mark.parametrize("difference", PLANTED)
def test_a_planted_difference_is_found(compare: Callable[..., None], difference: str) -> None:
    """One rule of the model is changed by a hair, and the comparison fails."""
    script, rule = PLANTED[difference]

    @given(calls=lists)
    @settings(
        quick, max_examples=3000, phases=[Phase.generate], derandomize=True, database=None, report_multiple_bugs=False
    )
    def agree(calls: list[tuple[Any, ...]]) -> None:
        compare(calls, RULES | {script: rule})

    with pytest.raises(AssertionError):
        agree()
