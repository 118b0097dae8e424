"""What an owner makes of an evaluation that comes in."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from services.aggregator import evaluating
from services.aggregator.evaluation import Evaluation
from services.aggregator.job_state import State
from services.aggregator.protocol import EvaluationChanged
from shared.errors import Stale
from shared.events import BlobRef, ModelEvaluated
from shared.job import job_spec

MODEL = BlobRef(key="k", size=1, digest="0" * 64)


def test_an_answer_that_was_not_asked_for_completes_nothing() -> None:
    """Nobody was there to be asked, and an answer to an earlier owner's question comes: the evaluation stays open."""
    spec = job_spec.parse({
        "name": "t", "model": {"name": "softmax"}, "pool": "cpu", "rounds": {"count": 2},
        "data": {"name": "digits", "clients": 3, "local_test": 0.2}, "evaluate": {"where": "clients"},
    })  # fmt: skip
    context: Any = SimpleNamespace(
        job="t-aaaaaa", fence=7, spec=spec, edges=MagicMock(), faults=MagicMock(), log=MagicMock()
    )
    state = State(spec, round=1)
    nobody = EvaluationChanged(Evaluation(1, frozenset(), model=MODEL)).evaluation
    state = State(spec, round=1, evaluations=state.evaluations.asked(nobody))
    event = ModelEvaluated(job="t-aaaaaa", round=1, model="0" * 64, trainer="t", examples=4, part=9)

    with pytest.raises(Stale, match="is waiting for other evaluations"):
        evaluating.on_model_evaluated(context, state, event)
