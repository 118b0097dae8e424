"""Trainers come and go while a job runs."""

import os
import subprocess
from collections.abc import Callable

from shared import names
from tests.compose.containers import LONG, SECONDS, Federation, moment, now

#: Seconds from a container's start to its place in the roster: importing torch costs each new one two seconds of a
#: processor, so that fewer than six processors take longer.
JOIN = 5.0 * max(1.0, 6 / len(os.sched_getaffinity(0)))


def test_six_trainers_in_mid_job(federation: Federation, measured: Callable[[str], None]) -> None:
    """`docker compose up -d --scale trainer=6`: all join and take part; then one is left, and nothing is lost."""
    containers = federation.containers
    digests = federation.expected(LONG)
    first = {member.trainer for member in federation.servers.roster().alive()}
    job = federation.submit(count=LONG, seconds=0.5)
    federation.reached(job, 1)
    asked = now()
    words = ["up", "--detach", "--scale", "trainer=6"]
    command = subprocess.Popen([*containers.words(), *words], stderr=subprocess.DEVNULL)
    federation.trained(6)
    joined = now()
    assert command.wait(SECONDS) == 0
    at = federation.servers.ledger().required(job).round
    started = [moment(one["State"]["StartedAt"]) for one in containers.inspect("trainer")]
    new = [when for when in started if when > asked]
    assert len(new) == 4
    measured(
        f"six trainers in the roster {joined - asked:.1f} s after the command, "
        f"{joined - max(new):.1f} s after the last container started, {joined - min(new):.1f} s after the first"
    )
    assert joined - max(new) < JOIN
    federation.reached(job, at + 5)
    containers.up("--scale", "trainer=1")
    federation.trained(1)
    left = LONG - federation.servers.ledger().required(job).round
    assert left > 0, "the job was over before the trainers were gone"
    federation.holds(job, digests, seconds=SECONDS)

    took_part = trainers(federation, job)
    assert len(took_part) == 6
    assert first < took_part


def trainers(federation: Federation, job: str) -> set[str]:
    """Whose updates are in the manifests of a job; each round has those of all four clients."""
    blobs, found = federation.servers.blobs(), set()
    for number in range(1, LONG + 1):
        manifest = blobs.get_json(names.manifest_blob(job, number))
        assert [update["client"] for update in manifest["updates"]] == [f"client-{place}" for place in range(4)]
        assert manifest["rejected"] == {}
        found |= {update["trainer"] for update in manifest["updates"]}
    return found
