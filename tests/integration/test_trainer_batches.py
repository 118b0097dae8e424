"""Batches of clients in one task, and models evaluated on clients, through a real trainer."""

import numpy as np
import pytest

from services.trainer.data import dataset
from shared import names
from shared.aggregation import fold, weights
from shared.aggregation.fold import Fold
from shared.events import encode
from tests.by_hand import WAIT, Federation, digits


def test_a_batch_gives_to_the_bit_what_its_clients_would_have_given(federation: Federation) -> None:
    """The sum of integers that the aggregator would have made of them, and each one's figures; in one blob."""
    federation.start("--pool", "cpu", "--slots", "2")
    single, batched = digits(), digits(rounds={"count": 3, "clients_per_task": 4})
    base, cohort = federation.given(single), single.clients[:7]
    one_by_one = federation.trained(1, *cohort, base=base, spec=single)
    batches = federation.trained(2, *cohort, base=base, spec=batched, cohort_size=9)
    # Another round draws other batches of examples, so each is asked for in the round that it is compared in.
    again = federation.trained(2, *cohort, base=base, spec=single)
    assert [update.update for update in again] != [update.update for update in one_by_one]

    assert [[member.client for member in batch.members] for batch in batches] == [list(cohort[:4]), list(cohort[4:])]
    layout = weights.read_layout(federation.blobs.get(base))
    for batch, updates in zip(batches, (again[:4], again[4:]), strict=True):
        expected = Fold(layout.size, fold.grid_of(batched, 9))
        for update in updates:
            expected.add(layout.of_updates().flat(federation.file(update)), update.examples)
        file = federation.file(batch)
        partial = weights.layout_of({"sums": ("I64", (layout.size,))})
        weights.check_header(file, partial)
        np.testing.assert_array_equal(partial.views(file)["sums"], expected.sums)
        assert batch.update is not None
        assert batch.update.key == names.update_blob(federation.job, 2, batch.client, batch.update.digest)
        assert (batch.examples, batch.state) == (sum(update.examples for update in updates), None)
        for member, update in zip(batch.members, updates, strict=True):
            figures = dict(member.metrics)
            assert figures.pop("norm") == pytest.approx(
                np.linalg.norm(layout.of_updates().flat(federation.file(update)))
            )
            assert figures == {name: update.metrics[name] for name in figures}
            assert figures.keys() == {"client_loss", "client_accuracy", "train_loss"}
        mean = sum(update.metrics["client_loss"] * update.examples for update in updates) / batch.examples
        assert batch.metrics["client_loss"] == pytest.approx(mean)


def test_a_batch_says_which_of_its_clients_failed(federation: Federation) -> None:
    """The others count; where there are none, it has failed. And an event has room for as many as there may be."""
    federation.start("--pool", "cpu")
    spec = digits(rounds={"count": 3, "clients_per_task": 250})
    base = federation.given(spec)
    (found,) = federation.trained(1, "stranger-11", "client-1", "client-2", base=base, spec=spec)
    assert (found.client, [member.client for member in found.members]) == ("stranger-11", ["client-1", "client-2"])
    assert found.failures == {"stranger-11": "stranger-11 is none of the job's 10 clients"}

    strangers = [f"{'s' * 58}-{number}" for number in range(100, 350)]
    federation.ask(1, *strangers, base=base, spec=spec)
    none = federation.update()
    assert (none.update, none.members, none.failures.keys()) == (None, (), set(strangers))
    assert (none.error or "").endswith(" is none of the job's 10 clients")

    most = tuple(
        found.members[0].model_copy(
            update={"client": name, "metrics": {**found.members[0].metrics, "local_norm": 0.123456789}}
        )
        for name in strangers
    )
    assert len(encode(found.model_copy(update={"members": most}))) < 64 * 1024
    # What is wrong before the first of them begins is wrong for all.
    federation.ask(
        1, *spec.clients, base=base, spec=spec.model_copy(update={"model": digits(model={"name": "lenet"}).model})
    )
    broken = federation.update()
    assert (broken.failures.keys(), (broken.error or "")[:8]) == (set(spec.clients), "Refused:")


def test_a_batch_that_is_asked_for_again_is_trained_again(federation: Federation) -> None:
    """By another trainer: it finds no receipt that tells of all, and comes to the same sum."""
    trainer = federation.start("--pool", "cpu", "--name", "first")
    spec = digits(rounds={"count": 3, "clients_per_task": 5})
    base = federation.given(spec)
    (first,) = federation.trained(1, *spec.clients[:5], base=base, spec=spec)
    trainer.terminate()
    assert trainer.wait(WAIT) == 0
    federation.start("--pool", "cpu", "--name", "second")
    (again,) = federation.trained(1, *spec.clients[:5], base=base, spec=spec, attempt=2, again=True)
    assert (again.trainer, again.update) == ("second", first.update)
    assert again.timings != {}


def test_a_model_is_evaluated_on_what_clients_hold_out(federation: Federation) -> None:
    """Each by itself, and never on what it trains on; who holds out nothing is left out."""
    federation.start("--pool", "cpu")
    spec = digits(data={"name": "digits", "clients": 10, "local_test": 0.25}, evaluate={"where": "clients"})
    base = federation.given(spec)
    found = federation.evaluated(base, spec, "client-3", "stranger-77", "client-5", part=2)
    assert (found.error, found.metrics, found.part) == (None, {}, 2)
    assert [member.client for member in found.members] == ["client-3", "client-5"]
    assert found.examples == sum(member.examples for member in found.members) == 72
    for member in found.members:
        held = dataset.held_by(dataset.load(spec), spec, member.client)
        assert held is not None
        assert member.examples == len(held[1])
        assert member.metrics["loss"] == pytest.approx(2.3, abs=0.3)

    assert "stranger-77" in (federation.evaluated(base, spec, "stranger-77", number=2).error or "")
    none = federation.evaluated(base, digits(), "client-3", number=3)
    assert (none.examples, none.members, none.error) == (0, (), None)
    assert federation.evaluated(base, spec, number=4).examples == 359  # the test set, where nobody is named


def test_a_client_is_evaluated_with_what_is_its_own(federation: Federation) -> None:
    """The layers that it keeps are part of the model that it uses."""
    federation.start("--pool", "cpu")
    spec = digits(
        data={"name": "digits", "clients": 10, "local_test": 0.25},
        model={"name": "mlp", "hidden": [32]},
        train={"epochs": 30, "batch_size": 16, "personal": ["head.*"]},
        evaluate={"where": "clients"},
    )
    base = federation.given(spec)
    (update,) = federation.trained(1, "client-3", base=base, spec=spec)
    without = federation.evaluated(base, spec, "client-3", number=1)
    own = federation.evaluated(base, spec, "client-3", number=2, states=(update.state,))
    assert own.members[0].metrics["loss"] < without.members[0].metrics["loss"]


def test_evaluating_a_silo_uses_its_own_examples(federation: Federation) -> None:
    """And is asked of the silo itself."""
    federation.start("--client", "north")
    spec = digits(
        data={"name": "own_job:Ward", "local_test": 0.25}, pool=None, silos=["north"], evaluate={"where": "clients"}
    )
    base = federation.initial(spec, group="north")
    found = federation.evaluated(base, spec, "north", group="north")
    assert [(member.client, member.examples) for member in found.members] == [("north", 1)]
