"""What selection knows of the clients, round by round."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.selection.oort import Pacer
from services.aggregator.selection.policies import is_needed, observe, read_history
from services.aggregator.selection.policy import NOTHING, ClientStats, Facts, History, Report
from services.aggregator.selection.tifl import Tiers
from shared.job import job_spec

POLICIES = {
    "random": False,
    "round_robin": False,
    "power_of_choice": True,
    "oort": True,
    "tifl": True,
}
FIGURE = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 10**6)


def spec(name: str = "power_of_choice", **changes: Any) -> job_spec.JobSpec:
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": 20},
            "select": {"name": name, "clients": 4},
            "rounds": {"count": 30},
            "pool": "cpu",
        }
        | changes
    )


def told(loss: float, *, examples: int = 10, seconds: float = 1.0) -> Report:
    return Report(examples, {"client_loss": loss, "train_loss": 0.1}, seconds)


@pytest.mark.parametrize(("name", "needed"), POLICIES.items())
def test_a_history_is_kept_where_a_policy_goes_by_it(name: str, needed: bool) -> None:
    """The others are functions of the round alone."""
    assert is_needed(spec(name)) is needed
    assert not is_needed(spec(select={"name": "all"}))


def test_who_is_asked_and_who_delivers_are_counted_apart() -> None:
    """A client that was asked and did not deliver keeps what is known of it."""
    first = observe(NOTHING, spec(), Facts(1, ("a", "b"), {"a": told(2.0), "b": told(1.0)}))
    then = observe(first, spec(), Facts(2, ("a", "c"), {"c": told(0.5, examples=7, seconds=3.5)}))

    assert then.clients == {
        "a": ClientStats(asked=2, accepted=1, last_asked=2, last_accepted=1, examples=10, loss=2.0, seconds=1.0),
        "b": ClientStats(asked=1, accepted=1, last_asked=1, last_accepted=1, examples=10, loss=1.0, seconds=1.0),
        "c": ClientStats(asked=1, accepted=1, last_asked=2, last_accepted=2, examples=7, loss=0.5, seconds=3.5),
    }
    assert first.clients["a"].asked == 1  # a history is a value: the first one is as it was
    assert dict(NOTHING.clients) == {}


def test_an_update_that_comes_rounds_later_counts_when_it_comes() -> None:
    """Asynchronous: asked in one round, accepted in another."""
    asked = observe(NOTHING, spec(), Facts(1, ("a",), {}))

    assert observe(asked, spec(), Facts(3, (), {"a": told(1.0)})).clients["a"][:4] == (1, 1, 1, 3)


def test_the_initial_model_tells_nothing_of_who_made_it() -> None:
    """Round 0 trains nobody."""
    assert observe(NOTHING, spec(), Facts(0, ("a",), {"a": Report(1, {}, 9.0)})) == NOTHING


@pytest.mark.parametrize(
    ("metrics", "loss"),
    [
        ({"client_loss": 1.5, "train_loss": 0.5}, 1.5),
        ({"train_loss": 0.5}, 0.5),
        ({"client_loss": float("nan"), "train_loss": 0.5}, 0.5),
        ({"client_loss": float("inf")}, 3.0),
        ({}, 3.0),
    ],
)
def test_the_loss_is_that_of_the_model_a_client_was_given_or_else_of_its_training(
    metrics: dict[str, float], loss: float
) -> None:
    """And what is no number changes nothing."""
    before = observe(NOTHING, spec(), Facts(1, ("a",), {"a": told(3.0)}))

    assert observe(before, spec(), Facts(2, ("a",), {"a": Report(1, metrics, 1.0)})).clients["a"].loss == loss


def test_an_evaluation_on_a_clients_held_out_examples_is_its_accuracy() -> None:
    """Even of one that never trained, whose examples for training stay unknown."""
    facts = Facts(1, ("a",), {"a": Report(5, {"client_accuracy": 0.5}, 1.0)}, {"b": {"accuracy": 0.25}})
    found = observe(NOTHING, spec(), facts).clients

    assert (found["a"].accuracy, found["b"].accuracy, found["b"].asked) == (0.5, 0.25, 0)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
        st.builds(
            ClientStats, COUNT, COUNT, COUNT, COUNT, COUNT, st.none() | FIGURE, st.none() | FIGURE, st.none() | FIGURE
        ),
        max_size=5,
    ),
    st.none() | st.builds(Pacer, FIGURE, FIGURE, FIGURE),
    st.none()
    | st.builds(
        Tiers,
        st.lists(COUNT).map(tuple),
        st.lists(FIGURE).map(tuple),
        st.lists(st.none() | FIGURE).map(tuple),
        st.none() | COUNT,
    ),
)
def test_a_history_comes_back_from_json_as_it_was(
    clients: dict[str, ClientStats], pacer: Pacer | None, tiers: Tiers | None
) -> None:
    """To the last bit of every figure, so that whoever takes over chooses as the last owner would have."""
    states = {name: state for name, state in (("oort", pacer), ("tifl", tiers)) if state is not None}
    history = History(clients, states)
    found = read_history(json.loads(json.dumps(history.to_document(), allow_nan=False)))

    assert found == history
    assert all(isinstance(known, ClientStats) for known in found.clients.values())


def test_two_thousand_clients_take_a_quarter_of_a_megabyte_at_most() -> None:
    """One client is a row of figures, not of words."""
    full = ClientStats(100, 99, 5000, 4999, 12345, 1 / 3, 2 / 3, 100 / 7)
    history = History({f"client-{index:04d}": full for index in range(2000)})

    assert len(json.dumps(history.to_document(), separators=(",", ":"))) <= 250_000
