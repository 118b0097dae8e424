"""Real servers for the tests: one set per session, and in it a vhost and a Redis database for each test.

The trainers' key opens one bucket, so that one is shared, and emptied after each test.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

import shared
from deploy.native.stack import Role, Stack
from shared.amqp.bus import Bus
from shared.job import user_code
from shared.process import settings
from shared.redis.client import Redis
from shared.redis.ledger import Ledger
from shared.redis.roster import Roster
from shared.s3.store import Blobs
from tests.container_broker import ContainerStack

if TYPE_CHECKING:
    from tests.harness import Services

assert Path(shared.__file__).parent.parent == Path(__file__).parent.parent, "another package is called shared"

AnySettings = TypeVar("AnySettings", bound=settings.Common)

# Tests run in as many processes as there are cores; more threads of torch would take turns, at twice the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine makes any example slow, which says nothing about the property.
hypothesis_settings.register_profile("fedq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("fedq")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """RabbitMQ, Redis and S3, on free ports in a folder of their own."""
    directory, image = tmp_path_factory.mktemp("stack"), request.config.getoption("--rabbitmq-image")
    with ContainerStack(directory, image) if image else Stack(directory) as running:
        yield running


@dataclass
class Servers:
    """The session's servers as one test sees them."""

    stack: Stack
    vhost: str
    database: int
    buses: list[Bus]

    def environment(self, role: Role = "operator") -> dict[str, str]:
        """`FEDQ_*` for a process of this test, which may run the code of the examples and of the tests."""
        found = self.stack.environment(role, vhost=self.vhost) | {"FEDQ_ALLOW": "examples.,tests.,own_job."}
        if "FEDQ_REDIS_URL" in found:
            found["FEDQ_REDIS_URL"] = f"{found['FEDQ_REDIS_URL'].rpartition('/')[0]}/{self.database}"
        return found

    def settings(self, kind: type[AnySettings], role: Role = "operator") -> AnySettings:
        """The settings of a service, without touching this process's environment."""
        return kind.model_validate(
            {name.removeprefix("FEDQ_").lower(): value for name, value in self.environment(role).items()}
        )

    def bus(self, app: str = "test", role: Role = "operator") -> Bus:
        """A place on the bus, closed when the test ends."""
        bus = Bus(self.settings(settings.Broker, role), app)
        self.buses.append(bus)
        return bus

    def blobs(self, role: Role = "operator") -> Blobs:
        return Blobs(self.settings(settings.Store, role))

    def ledger(self) -> Ledger:
        return Ledger(self.redis())

    def roster(self) -> Roster:
        return Roster(self.redis())

    def redis(self) -> Redis:
        return Redis(self.settings(settings.Record))


@pytest.fixture
def servers(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """A fresh vhost, Redis database and bucket on the session's servers."""
    for name in [name for name in os.environ if name.startswith("FEDQ_")]:
        monkeypatch.delenv(name)
    number = next(_numbers)
    own = Servers(stack, vhost=f"test-{number}", database=number % 15 + 1, buses=[])
    own.redis().flushdb()
    stack.add_vhost(own.vhost)
    yield own
    for bus in own.buses:
        bus.close()
    stack.remove_vhost(own.vhost)
    own.blobs().delete("jobs/")


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which of the user's code this process may run, as `FEDQ_ALLOW` does, until the test ends."""

    def permit(*entries: str) -> None:
        monkeypatch.setattr(user_code, "_policy", user_code.Policy(frozenset(entries), "this test"))

    return permit


@pytest.fixture
def services(servers: Servers, tmp_path: Path) -> "Iterator[Services]":
    """fedq's own services, none of which outlives the test."""
    from tests.harness import Services  # noqa: PLC0415 - it stands on this module

    found = Services(servers, tmp_path)
    yield found
    found.stop()
    assert not any(process.alive() for process in found.started)


def pytest_configure() -> None:
    """Gives every process that a test starts the default handling of signals.

    A shell that starts a command in the background, and nohup, have signals ignored, and children inherit that. A
    signal that is caught here, and does nothing, is at its default again in them.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=["sample", "all"], default="sample", help="which rows of the fault matrix")
    parser.addoption("--rabbitmq-image", default="", help="a broker in a container, in place of the native one")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What needs containers is for `make test-compose`: a plain run has none."""
    return True if plain(config) and collection_path == Path(__file__).with_name("compose") else None


def plain(config: pytest.Config) -> bool:
    """Whether no test was asked for by name; a worker of pytest-xdist is given the arguments of the whole run."""
    return config.args == config.getini("testpaths")
