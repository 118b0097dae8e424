"""What single answers say of a model together."""

import pytest

from services.aggregator.evaluation import (
    Evaluation,
    evaluators,
    next_tester,
    nobody_has_tests,
    part_of,
    part_of_tests,
    summary,
    whose_tests,
)
from shared.events import Member, ModelEvaluated
from shared.job import job_spec


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
    found = Evaluation(3, {0, mine})

    for part, figures in (
        (mine, {"a": (10, 0.5)}),
        (mine, {"a": (10, 0.9)}),
        (other, {"a": (10, 0.9), "b": (10, 0.9)}),
    ):
        found = found.answered_by(answer(part, figures))
        assert not found.complete
    found = found.answered_by(answer(0, examples=50, metrics={"accuracy": 0.75}))
    assert found.complete
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
    every, some = job_spec.parse(document), job_spec.parse(job_spec.override(document, [("evaluate.clients", 5)]))

    assert evaluators(every, {"cpu": 1}, 1) == every.clients
    assert evaluators(some, {}, 1) == ()
    drawn = [evaluators(some, {"cpu": 1}, number) for number in range(5)]
    assert all(len(one) == 5 and list(one) == sorted(one) for one in drawn)
    assert len(set(drawn)) == 5
    assert drawn[0] == evaluators(some, {"cpu": 3}, 0)


SILOS = job_spec.parse(
    {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "m:f"},
        "rounds": {"count": 2},
        "silos": ["a", "b", "c"],
    }
)
POOL = job_spec.parse(
    {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "digits", "clients": 3},
        "rounds": {"count": 2},
        "pool": "cpu",
    }
)


def test_the_test_set_is_that_of_the_first_silo_there_that_may_have_one_and_then_of_the_one_that_has() -> None:
    """Who is away is not asked, and who has none only once."""
    alive = {"b": 1, "c": 2}

    assert next_tester(SILOS, alive, (), "") == "b"
    assert next_tester(SILOS, alive, {"b"}, "") == "c"
    assert next_tester(SILOS, alive, {"b", "c"}, "") is None
    assert next_tester(SILOS, alive, (), "c") == "c"
    assert next_tester(SILOS, alive, {"b"}, "a") == "c"
    assert (next_tester(POOL, {}, (), ""), next_tester(POOL, {}, {"cpu"}, "")) == ("cpu", None)
    assert nobody_has_tests(SILOS, {"a", "b", "c"})
    assert not nobody_has_tests(SILOS, {"b", "c"})


def test_an_answer_says_whose_test_set_it_is_of() -> None:
    """So that a repeated answer of one silo is none of the next."""
    parts = [part_of_tests(SILOS, silo) for silo in "abc"]

    assert [whose_tests(SILOS, part) for part in parts] == ["a", "b", "c"]
    assert len({0, *parts, *(part_of((silo,)) for silo in "abc")}) == 7
    assert whose_tests(SILOS, part_of(("a",))) is None
    assert whose_tests(POOL, part_of_tests(POOL, "cpu")) == "cpu"
    assert part_of_tests(POOL, "cpu") == 0


def test_what_was_not_measured_is_said_with_the_reason() -> None:
    """An error before the want of a test set; nothing where there is a figure, or none was wanted."""
    silent, failed = (
        Evaluation(3, set(), tried={"a": "", "b": ""}),
        Evaluation(3, set(), tried={"a": "", "b": "KeyError"}),
    )
    here = job_spec.parse(
        SILOS.model_dump() | {"evaluate": {"where": "clients"}, "data": {"name": "m:f", "local_test": 0.5}}
    )
    tests = part_of_tests(SILOS, "b")
    measured = Evaluation(3, {tests}).answered_by(answer(tests, examples=5))

    assert silent.unmeasured(SILOS).startswith("no silo that is there has a test set, and the model was not measured")
    assert failed.unmeasured(SILOS) == "the model was not measured on a test set: KeyError"
    assert Evaluation(3, set(), tried={"cpu": ""}).unmeasured(POOL).startswith("the data have no test set")
    assert measured.unmeasured(SILOS) == ""
    part = part_of(("a",))
    answers = (answer(part, {"a": (10, 0.5)}), answer(part), answer(part, error="KeyError: 'a'"))
    held, none, broken = (Evaluation(3, {part}).answered_by(event) for event in answers)
    assert held.unmeasured(here) == ""
    assert none.unmeasured(here).startswith("no client that was asked holds out examples")
    assert broken.unmeasured(here) == "the model was not measured on the clients: KeyError: 'a'"
