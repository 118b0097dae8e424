"""A round's clients as values: they behave as the sets they are, and nothing is copied for each that answers."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator import job_state
from services.aggregator.client_set import ClientSet
from services.aggregator.protocol import Accepted, Failed, Looked, Opened
from shared.job import job_spec
from shared.job.job_spec import JobSpec

NAMES = "abcdefgh"
MANY = 20_000


def spec(clients: int) -> JobSpec:
    return job_spec.parse(
        {
            "name": "many",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": clients},
            "rounds": {"count": 1},
            "pool": "pool",
        }
    )


step = st.tuples(st.integers(0, 30), st.sampled_from(["plus", "without"]), st.sampled_from(NAMES))


@given(steps=st.lists(step, max_size=30), first=st.lists(st.sampled_from(NAMES)))
@settings(deadline=None)
def test_sets_that_grew_apart_do_not_know_of_each_other(steps: list[tuple[int, str, str]], first: list[str]) -> None:
    """Whichever is changed, and in whatever order: each is what the same steps make of a frozenset."""
    grown, plain = [ClientSet(first)], [frozenset(first)]
    for index, kind, name in steps:
        at = index % len(grown)
        grown.append(grown[at].plus(name) if kind == "plus" else grown[at].without(name))
        plain.append(plain[at] | {name} if kind == "plus" else plain[at] - {name})

    assert [frozenset(one) for one in grown] == plain
    assert [len(one) for one in grown] == [len(one) for one in plain]
    assert [[name in one for name in NAMES] for one in grown] == [[name in one for name in NAMES] for one in plain]


def test_a_set_keeps_the_order_in_which_it_grew() -> None:
    assert list(ClientSet("ba").plus("c").plus("a").plus("d")) == ["b", "a", "c", "d"]


def test_states_share_who_has_answered() -> None:
    """Of 2,000 states in a row in a round of 20,000, each takes a few hundred bytes and not a set of its own."""
    job = spec(MANY)
    state, _ = job_state.begin(job, 0)
    state, _ = job_state.step(state, Looked({"pool": 1}), 0)
    state, _ = job_state.step(state, Opened(60), 0)
    state, _ = job_state.step(state, job_state.Reviewed(60), 0)
    for client in job.clients[4000:]:
        state, _ = job_state.step(state, Accepted(client), 0)
    states = [state]
    tracemalloc.start()
    try:
        for client in job.clients[:1000]:
            states.append(job_state.step(states[-1], Accepted(client), 0)[0])
        for client in job.clients[1000:2000]:
            states.append(job_state.step(states[-1], Failed(client, "why"), 0)[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (len(states[-1].accepted), len(states[-1].failed)) == (MANY - 4000 + 1000, 1000)
    assert len(states[0].accepted) == MANY - 4000
    assert peak < 4000 * len(states)
