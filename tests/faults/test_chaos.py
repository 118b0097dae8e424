"""Everything at once: three jobs, three minutes of random kills, freezes and restarts, and the undisturbed digests."""

import time

import pytest

from tests.faults.federation import Federation, Row
from tests.faults.nemesis import Nemesis

SECONDS = 180.0
SEED = 20261124
LONG = {
    "train": {"name": "tests.faults.step:train", "args": {"seconds": 0.5}},
    "rounds": {"count": 40, "deadline": "2m"},
}


@pytest.mark.timeout(900)
@pytest.mark.row("chaos for 3 minutes, 3 jobs", "P1 to P8")
def test_chaos(federation: Federation, row: Row) -> None:
    """Whatever happened to whom, every job ends in the digests of the job that nobody disturbed."""
    digests = federation.undisturbed(**LONG)
    nemesis = Nemesis(federation, SEED)
    submitted = [federation.submit(**LONG) for _ in range(3)]
    nemesis.started = time.monotonic()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        print("seed", SEED, nemesis.strike())
    row.fire(", ".join(f"{count} × {what}" for what, count in sorted(nemesis.done.items())))
    for job in submitted:
        federation.holds(job, digests, seconds=300)
    row.recovered()
