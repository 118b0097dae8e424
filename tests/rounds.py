"""Committed rounds for tests of what is made of them, as the command line reads them."""

from typing import Any, cast

from services.cli.report.history import PastRound
from shared.record.archive import CommittedRound, RoundEvaluation
from shared.record.rounds import EvaluationRecord, Round
from shared.s3.store import Blobs

NO_BLOBS = cast(Blobs, None)  # a record that is not cut needs no store
MODEL = {"key": "jobs/t-abc234/model", "size": 8, "digest": "0" * 64}


def past_round(number: int, evaluation: dict[str, Any] | None = None, **changes: Any) -> PastRound:
    """A committed round without updates, but for `changes` of its manifest."""
    about: dict[str, Any] = {"job": "t-abc234", "round": number, "attempt": 1, "model": MODEL, "seconds": 1.0}
    found = {**about, "metrics": {}, "updates": [], "rejected": {}, **changes}
    committed = CommittedRound("manifest.json", Round.model_validate(found), found, NO_BLOBS)
    if evaluation is None:
        return PastRound(committed, None)
    told = {"model": MODEL["digest"], "examples": 1, **evaluation}
    return PastRound(committed, RoundEvaluation("e.json", EvaluationRecord.model_validate(told), told, NO_BLOBS))
