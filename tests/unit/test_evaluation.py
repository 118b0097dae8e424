"""What single answers say of a model together."""

import pytest

from services.aggregator.evaluation import Evaluation, evaluators, part_of, summary
from shared import jobs
from shared.events import Member, ModelEvaluated


def answer(part: int, members: dict[str, tuple[int, float]] | None = None, **told) -> ModelEvaluated:
    found = tuple(
        Member(client=name, examples=examples, metrics={"accuracy": accuracy, "loss": 1 - accuracy})
        for name, (examples, accuracy) in (members or {}).items()
    )
    examples = sum(member.examples for member in found)
    about = {"job": "t-abc234", "round": 3, "model": "0" * 64, "trainer": "t", "examples": examples, "members": found}
    return ModelEvaluated.model_validate({**about, "part": part, **told})


def test_it_is_complete_when_each_part_is_answered_and_a_repeated_answer_is_none() -> None:
    """The first answer to a part counts, and none to a part that an earlier owner cut otherwise."""
    mine, other = part_of(("a",)), part_of(("a", "b"))
    found = Evaluation(3, frozenset({0, mine}))

    assert not found.take(answer(mine, {"a": (10, 0.5)}))
    assert not found.take(answer(mine, {"a": (10, 0.9)}))
    assert not found.take(answer(other, {"a": (10, 0.9), "b": (10, 0.9)}))
    assert found.take(answer(0, examples=50, metrics={"accuracy": 0.75}))
    assert found.examples == 60
    assert found.metrics["accuracy"] == 0.75
    assert found.metrics["local_accuracy"] == 0.5


def test_clients_are_weighed_by_examples_averaged_and_the_worst_tenth_is_told() -> None:
    """Three figures of one metric, which differ where clients do."""
    clients = {f"c{number}": {"examples": 1 + number, "accuracy": number / 20} for number in range(20)}
    found = summary(clients)

    weighted = sum((1 + number) * number / 20 for number in range(20)) / sum(range(1, 21))
    assert found["local_accuracy"] == pytest.approx(weighted)
    assert found["local_accuracy_mean"] == pytest.approx(9.5 / 20)
    assert found["local_accuracy_worst_decile"] == pytest.approx((0 + 1 / 20) / 2)


def test_what_not_all_clients_tell_is_left_out() -> None:
    """A mean is one over all of them."""
    found = summary({"a": {"examples": 1, "loss": 1.0, "accuracy": 1.0}, "b": {"examples": 1, "loss": 3.0}})

    assert found == {"local_loss": 2.0, "local_loss_mean": 2.0}
    assert summary({}) == {}


def test_evaluators_are_drawn_anew_each_round_and_the_same_everywhere() -> None:
    """All where the job does not say how many, and only those that are alive."""
    document = {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "digits", "clients": 50, "local_test": 0.2},
        "rounds": {"count": 2},
        "evaluate": {"where": "clients"},
        "pool": "cpu",
    }
    every, some = jobs.parse(document), jobs.parse(jobs.override(document, [("evaluate.clients", 5)]))

    assert evaluators(every, {"cpu": 1}, 1) == every.clients
    assert evaluators(some, {}, 1) == ()
    drawn = [evaluators(some, {"cpu": 1}, number) for number in range(5)]
    assert all(len(one) == 5 and list(one) == sorted(one) for one in drawn)
    assert len(set(drawn)) == 5
    assert drawn[0] == evaluators(some, {"cpu": 3}, 0)
