"""Clients that are slow, far, absent or hostile, played by a real trainer."""

import os
import time
from typing import Any

import numpy as np

from shared import names
from shared.aggregation import weights
from shared.aggregation.weights import Flat
from shared.events import BlobRef, ModelUpdate
from shared.job.job_spec import JobSpec
from tests.by_hand import Federation, digits, until


def delta(federation: Federation, update: ModelUpdate, base: BlobRef) -> Flat:
    layout = weights.read_layout(federation.blobs.get(base))
    return layout.of_updates().flat(federation.file(update))


def brief(federation: Federation, **simulate: Any) -> JobSpec:
    """Training that takes 0.2 s."""
    how = {"name": "own_job:brief", "args": {"signs": str(federation.directory)}}
    return digits(train=how, simulate=simulate)


def test_a_slow_client_takes_longer_and_no_longer_than_the_round(federation: Federation) -> None:
    """Its timings say so; a round that ends meanwhile sets its slot free."""
    federation.start("--pool", "cpu")
    spec = brief(federation, speed={"name": "ratios", "ratios": {"client-1": 4, "client-2": 1000}})
    base = federation.given(spec)
    slow, usual = federation.trained(1, "client-1", "client-3", base=base, spec=spec)
    assert usual.timings["train"] < 4 * 0.2 <= slow.timings["train"] <= slow.timings["total"]

    federation.ask(2, "client-2", base=base, spec=spec)
    until((federation.directory / "client-2-2-ended").exists, "client-2 is only slow by now")
    federation.end(2)
    began = time.monotonic()
    until(lambda: '"round 2 is over"' in federation.log(), "client-2 is left alone")
    assert time.monotonic() - began < 2
    federation.trained(3, "client-3", base=base, spec=spec)
    assert federation.updates.empty()


def test_a_slow_client_does_not_hold_up_a_trainer_that_stops(federation: Federation) -> None:
    """Its task goes back to the queue."""
    trainer = federation.start("--pool", "cpu", FEDQ_GRACE_S="0.5")
    spec = brief(federation, speed={"name": "ratios", "ratios": {"client-2": 1000}})
    federation.ask(1, "client-2", base=federation.given(spec), spec=spec)
    until((federation.directory / "client-2-1-ended").exists, "client-2 is only slow by now")
    began = time.monotonic()
    trainer.terminate()
    assert trainer.wait(60) == 0
    assert time.monotonic() - began < 5
    until(lambda: federation.waiting() == 1, "the task is back")


def test_a_far_client_waits_for_its_line(federation: Federation) -> None:
    """For the model, though the node has it, and for its update."""
    federation.start("--pool", "cpu")
    network = {"latency": "100ms", "down_mbps": 0.1, "up_mbps": 0.05}
    spec = digits(simulate={"network": network})
    base = federation.given(spec)
    first, second = federation.trained(1, "client-1", "client-2", base=base, spec=spec)
    assert second.downloaded == 0
    for update in (first, second):
        assert update.update is not None
        assert update.timings["fetch"] >= 0.1 + base.size * 8 / 1e5
        assert update.timings["upload"] >= 0.1 + update.update.size * 8 / 5e4


def test_hostile_clients_attack(federation: Federation) -> None:
    """By what they send, or by what they train on."""
    federation.start("--pool", "cpu")
    plain = digits()
    scaled = digits(simulate={"attack": {"name": "scaled_update", "fraction": 1.0, "factor": -3}})
    flipped = digits(simulate={"attack": {"name": "label_flip", "fraction": 1.0}})
    file = federation.blobs.get(federation.given(plain))
    weights.read_layout(file).flat(file)[:] = 0  # no class is like another
    base = federation.blobs.put(f"jobs/{federation.job}/zeros", file)
    honest, opposed, misled = (
        federation.trained(1, "client-1", base=base, spec=spec)[0] for spec in (plain, scaled, flipped)
    )
    np.testing.assert_allclose(delta(federation, opposed, base), -3 * delta(federation, honest, base), rtol=1e-6)
    biases = [delta(federation, update, base)[:10] for update in (honest, misled)]
    np.testing.assert_allclose(biases[0], biases[1][::-1], atol=1e-6)  # the classes turned round
    # In a batch no less.
    batched = digits(simulate=scaled.simulate, rounds={"count": 3, "clients_per_task": 2})
    (batch,) = federation.trained(1, "client-1", "client-2", base=base, spec=batched)
    assert batch.members[0].metrics["norm"] > 2.9 * np.linalg.norm(delta(federation, honest, base))


def test_absent_clients_say_nothing(federation: Federation) -> None:
    """Those that drop out, or are away although they were asked; in a batch they are left out. Or they say so."""
    federation.start("--pool", "cpu")
    spec = digits()
    base = federation.given(spec)
    federation.blobs.put_json(names.manifest_blob(federation.job, 0), {"opened": time.time() - 100})
    silent = digits(simulate={"dropout": {"rate": 0.9999}})
    away = digits(
        simulate={
            "availability": {"name": "trace", "spans": {"client-2": [[0, 10]], "client-3": [[0, 9e9]]}},
            "aware": False,
        }
    )
    loud = digits(simulate={"dropout": {"rate": 0.9999, "how": "error"}})
    federation.ask(1, "client-1", base=base, spec=silent)
    federation.ask(1, "client-2", "client-3", base=base, spec=away)
    assert federation.update().client == "client-3"
    federation.ask(1, "client-4", base=base, spec=loud)
    found = federation.update()
    assert (found.client, found.error) == ("client-4", "Refused: client-4 drops out (simulated)")

    batched = digits(simulate=away.simulate, rounds={"count": 3, "clients_per_task": 3})
    federation.ask(1, "client-2", "client-3", base=base, spec=batched)
    batch = federation.update()
    assert (batch.client, [member.client for member in batch.members], batch.failures) == ("client-2", ["client-3"], {})
    federation.ask(2, "client-2", base=base, spec=batched)
    federation.ask(2, "client-5", base=base, spec=spec)
    assert federation.update().client == "client-5"
    assert federation.updates.empty()


def test_work_of_an_earlier_round_is_wanted_for_a_while(federation: Federation) -> None:
    """Where rounds do not wait for each other: while the model of so many rounds later is not there."""
    federation.start("--pool", "cpu")
    spec = digits(strategy={"name": "fedbuff", "buffer_size": 2, "max_staleness": 2})
    base = federation.given(spec)
    for number in (1, 2):
        federation.blobs.put_json(names.manifest_blob(federation.job, number), {})
    federation.end(2, lag=2)
    federation.trained(1, "client-1", base=base, spec=spec)
    federation.blobs.put_json(names.manifest_blob(federation.job, 3), {})
    federation.ask(1, "client-2", base=base, spec=spec)
    federation.trained(2, "client-3", base=base, spec=spec)
    federation.end(4, lag=2)
    folders = (federation.directory / "cache" / "trainers").glob("*/")
    notes = [signals / f"over-{federation.job}" for signals in folders if signals.is_dir()]
    until(lambda: [note for note in notes if os.readlink(note).startswith("2.")], "it has heard of the fourth's end")
    federation.ask(2, "client-4", base=base, spec=spec)
    federation.trained(3, "client-5", base=base, spec=spec)
    assert federation.updates.empty()
