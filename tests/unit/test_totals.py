"""What a round adds to the totals: read from its manifest alone, and bounded whatever a trainer says."""

import math
from typing import Any

import pytest

from services.aggregator.manifests import LONGEST, came_to, came_to_nothing
from shared.record.rounds import ClientLists, Round
from shared.redis.ledger import Sum, Totals


def totals_of(found: dict[str, Any]) -> Totals:
    return came_to(Round.model_validate(found), [ClientLists.model_validate(found)])


def blob(number: int) -> dict[str, Any]:
    return {"key": f"u{number}", "size": 1, "digest": "0" * 64}


def manifest(*timings: dict[str, float], own: dict[str, float] | None = None) -> dict[str, Any]:
    updates = [
        {"client": f"c{number}", "blob": blob(number), "examples": 1, "timings": spent}
        for number, spent in enumerate(timings)
    ]
    about: dict[str, Any] = {"job": "t-abc234", "round": 1, "attempt": 1, "model": blob(-1), "metrics": {}}
    about |= {"updates": updates, "rejected": {"x": "late"}, "seconds": 2.5}
    return about if own is None else about | {"timings": own}


def test_a_round_is_what_its_updates_took() -> None:
    """Each part by itself: an update that was told of again has no timings, and a step of one's own no evaluation."""
    found = totals_of(manifest({"fetch": 0.5, "train": 1.0}, {"fetch": 0.25, "train": 2.0, "evaluate": 0.125}, {}))

    assert found.rounds == {"committed": Sum(1, 2.5)}
    assert found.updates == {"accepted": 3, "rejected": 1}
    none = Sum(0, 0.0)
    assert found.parts == {
        "wait": none,
        "download": Sum(2, 0.75),
        "evaluate": Sum(1, 0.125),
        "train": Sum(2, 3.0),
        "upload": none,
    }


def test_a_batch_took_its_time_once() -> None:
    """Its clients share one file and one trainer's stopwatch; they are an update each."""
    about = manifest({"train": 4.0}, {"train": 4.0}, {"train": 1.0}, own={"fold": 0.5, "step": 0.25})
    about["updates"][1]["blob"] = about["updates"][0]["blob"]
    found = totals_of(about)

    assert (found.parts["train"], found.parts["fold"], found.parts["step"]) == (Sum(2, 5.0), Sum(2, 0.5), Sum(1, 0.25))
    assert found.updates["accepted"] == 3


@pytest.mark.parametrize(("said", "counted"), [(math.nan, 0), (math.inf, 0), (-1.0, 0), (1e300, LONGEST), (3.0, 3.0)])
def test_a_trainer_may_say_what_it_likes(said: float, counted: float) -> None:
    """It makes no series, breaks no commit, and drowns nobody else's time."""
    found = totals_of(manifest({"train": said, "made-up": 1.0}))

    assert found.parts["train"] == Sum(1, counted)
    assert "made-up" not in found.parts


def test_totals_are_read_as_they_were_kept() -> None:
    totals = Totals({"failed": Sum(2, 60.5)}, {"train": Sum(3, 0.000_001)}, {"abandoned": 4})
    kept = {name: str(amount) for name, amount in totals.fields().items()}

    assert Totals.read(kept) == totals
    assert Totals.read({}) == Totals()
    assert all(isinstance(amount, int) for amount in totals.fields().values()), "sums of floats depend on their order"


def test_a_round_without_a_model_abandons_what_it_had() -> None:
    found = came_to_nothing("stopped", 1.5, accepted=3, rejected=1)

    assert found == Totals(rounds={"stopped": Sum(1, 1.5)}, updates={"abandoned": 3, "rejected": 1})
