"""Each container is killed in mid-job; the job ends in the digests of one that nobody disturbed."""

from collections.abc import Callable

import pytest

from tests.compose.containers import LONG, SECONDS, Federation, now, said
from tests.harness import until

SERVICES = ("rabbitmq", "redis", "minio", "registry", "aggregator", "trainer")


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_is_started_again_by_up(
    federation: Federation, service: str, measured: Callable[[str], None]
) -> None:
    """`docker compose kill`, of both trainers at once too; then `docker compose up -d`, as the guide says."""
    digests = federation.expected()
    job = federation.submit()
    federation.reached(job, 2)
    federation.containers.compose("kill", service)
    assert not federation.containers.ids(service)
    killed = now()
    federation.containers.up()
    up = now()
    federation.reached(job, 4, seconds=SECONDS)
    measured(f"up took {up - killed:.1f} s, two rounds more were done {now() - killed:.1f} s after the kill")

    federation.holds(job, digests, seconds=SECONDS)


def test_one_of_two_trainers_is_killed(federation: Federation) -> None:
    """`docker kill`: the other one does its work, before anybody heals anything."""
    digests = federation.expected()
    job = federation.submit()
    federation.reached(job, 2)
    said("docker", "kill", federation.containers.ids("trainer")[0])

    federation.holds(job, digests, seconds=SECONDS)
    assert len(federation.containers.ids("trainer")) == 1


def test_a_crash_of_anything_heals_by_itself(federation: Federation, measured: Callable[[str], None]) -> None:
    """All containers, one after the other, in one job: Docker starts each again, and nobody does anything."""
    containers = federation.containers
    digests = federation.expected(LONG)
    job = federation.submit(count=LONG)
    federation.reached(job, 1)
    for service in SERVICES:
        for container in containers.ids(service):
            before = restarts(container)
            containers.crash(container)
            crashed = now()
            until(lambda c=container, n=before: restarts(c) > n, 20, f"the restart of {service}")
            at = federation.reached(job, 0).round
            federation.reached(job, min(at + 2, LONG), seconds=SECONDS)
            measured(f"{service}: two rounds more {now() - crashed:.1f} s after the crash")

    federation.holds(job, digests, seconds=SECONDS)


def restarts(container: str) -> int:
    return int(said("docker", "inspect", "--format", "{{.RestartCount}}", container))
