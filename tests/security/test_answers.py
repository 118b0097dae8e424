"""What a client says beside its update: however long or odd, a job goes on and ends in its own words."""

from typing import Any

import numpy as np
import pytest

from shared import names
from shared.events import (
    FIGURES,
    LABEL,
    MAX_BODY,
    EvaluateModel,
    Member,
    ModelEvaluated,
    RoundStart,
    TrainingEnd,
    encode,
)
from tests.integration.test_aggregator import UPDATES, Trainers, aggregators, spec, start, trainers

__all__ = ["aggregators", "trainers"]  # fixtures

HOSTILE = "client-1"


def crowded(stem: str) -> dict[str, float]:
    """As many figures as a message may have, with the longest names: four bytes for most characters."""
    return {f"{stem}-{number:05d}".ljust(LABEL, "\U0001d4b3"): 0.5 for number in range(FIGURES - 2)}


def test_the_longest_reason_of_a_client_ends_no_round_otherwise(aggregators: Any, trainers: Trainers) -> None:
    """A client whose reason is as long as a sentence may be: the round is tried again, and the next attempt commits."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        changes: dict[str, Any] = {}
        if event.round == 1 and event.attempt == 1 and client == HOSTILE:
            changes = {"error": "x" * 4000, "update": None, "examples": 0}
        trainers.send(event, client, trainers.file(event, client), **changes)

    rounds = {"count": 1, "deadline": "20s", "below_minimum": "retry", "attempts": 2}
    start(trainers, spec(rounds=rounds))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.rounds) == ("finished", 1), end.reason[:300]


def test_an_update_that_fails_a_stranger_counts_for_nothing(servers: Any, aggregators: Any, trainers: Trainers) -> None:
    """`failures` of a client that nobody asked: the update is refused before it is counted, and a good one counts.

    Nor is the stranger's own word that it cannot train taken for an answer.
    """
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 1 and client == HOSTILE:
            trainers.send(event, client, trainers.file(event, client), failures={"nobody-9": "x"})
            trainers.send(event, "nobody-9", trainers.file(event, client), update=None, examples=0, error="x")
        trainers.answer(event, client)

    job = start(trainers, spec(rounds={"count": 1, "deadline": "20s"}))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.rounds) == ("finished", 1), end.reason
    manifest = servers.blobs().get_json(names.manifest_blob(job, 1))
    assert len(manifest["updates"]) == 4
    assert manifest["rejected"]["nobody-9"] == "nobody-9 is not in the round's cohort"


def test_who_failed_beside_a_refused_update_is_not_waited_for(
    servers: Any, aggregators: Any, trainers: Trainers
) -> None:
    """One answer tells of a batch: where what some gave cannot be folded, the others have failed all the same."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 0 or client in ("client-2", "client-3"):
            trainers.answer(event, client)
        elif client == HOSTILE:
            file = trainers.file(event, client)
            UPDATES.flat(file)[3] = np.inf
            trainers.send(event, client, file, failures={"client-0": "no data"})

    job = start(trainers, spec(rounds={"count": 1, "minimum": 2, "deadline": "10m"}))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.missing.failed, end.missing.refused) == ("finished", 1, 1), end.reason
    assert servers.blobs().get_json(names.manifest_blob(job, 1))["rejected"] == {
        "client-0": "could not train: no data",
        HOSTILE: "its update is refused: holds NaN or Inf",
    }


@pytest.mark.parametrize("number", [3, 1_000_000])
def test_figures_of_a_model_that_does_not_exist_are_nobodys(
    servers: Any, aggregators: Any, trainers: Trainers, number: int
) -> None:
    """An evaluation of a round to come, or of another model than the round's, is not the job's."""
    aggregators()

    def answer(event: RoundStart, client: str) -> None:
        if event.round == 1 and client == HOSTILE:
            for of, model in ((number, "0" * 64), (0, "0" * 64)):
                trainers.bus.publish(
                    ModelEvaluated(job=event.job, round=of, model=model, trainer="evil", examples=1,
                                   metrics={"accuracy": 1.0, "loss": 0.0})
                )  # fmt: skip
        trainers.answer(event, client)

    job = start(trainers, spec(evaluate={"every": 1}))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.metrics["accuracy"]) == ("finished", 0.7)
    blobs = servers.blobs()
    assert blobs.get_json(names.evaluation_blob(job, 0))["metrics"]["accuracy"] == 0.5
    assert not blobs.exists(names.evaluation_blob(job, number))


@pytest.mark.parametrize("where", ["training", "evaluation", "both"])
def test_as_many_figures_as_a_message_holds_end_no_job(
    servers: Any, aggregators: Any, trainers: Trainers, where: str
) -> None:
    """All name a hundred metrics, others in each round: the round's end and the job's can be told."""
    aggregators()
    if where != "training":
        trainers.figures = lambda number: crowded(f"e{number}") | {"accuracy": 0.5, "loss": 1.0}  # type: ignore[method-assign]

    def answer(event: RoundStart, client: str) -> None:
        changes = {"metrics": crowded(f"t{event.round}")} if where != "evaluation" else {}
        trainers.send(event, client, trainers.file(event, client), **changes)

    job = start(trainers, spec(evaluate={"every": 1}, rounds={"count": 3, "deadline": "20s"}))
    end = trainers.until(TrainingEnd, answer)
    assert (end.outcome, end.rounds) == ("finished", 3), end.reason[:300]
    assert len(encode(end)) <= MAX_BODY
    assert where == "training" or end.metrics["accuracy"] == 0.5
    assert servers.ledger().required(job).status == "finished"


def test_a_figure_with_the_longest_name_ends_no_job(servers: Any, aggregators: Any, trainers: Trainers) -> None:
    """A client's own figure gets a longer name where the means of all clients are made."""
    aggregators()
    job_spec = spec(
        data={"name": "digits", "clients": 4, "local_test": 0.2}, evaluate={"every": 1, "where": "clients"},
        rounds={"count": 1, "deadline": "20s"},
    )  # fmt: skip
    job = start(trainers, job_spec)
    publish = trainers.bus.publish

    def of_members(event: Any, **how: Any) -> None:
        if isinstance(event, ModelEvaluated):
            asked = next(one for one in reversed(trainers.events) if isinstance(one, EvaluateModel))
            members = tuple(
                Member(client=client, examples=3, metrics={"m" * 64: 1.0, "loss": 1.0}) for client in asked.clients
            )
            event = event.model_copy(update={"members": members, "part": asked.part, "metrics": {}})
        publish(event, **how)

    trainers.bus.publish = of_members  # type: ignore[method-assign]
    end = trainers.until(TrainingEnd)
    assert (end.outcome, end.rounds) == ("finished", 1), end.reason
    assert servers.ledger().required(job).status == "finished"
