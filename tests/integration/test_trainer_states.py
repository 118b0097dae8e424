"""What a client keeps from round to round, and what travels of its training, through a real trainer."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from services.trainer.slot.client_state import ClientState
from shared import names
from shared.aggregation import weights
from shared.aggregation.compression.encoding import shrink
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.weights import Flat, Layout
from shared.events import BlobRef, ModelUpdate, StateRef
from shared.job import job_spec
from shared.job.job_spec import JobSpec
from shared.s3.store import Blobs
from tests.by_hand import Federation, digits, until

LR = 0.05


def layout_of(federation: Federation, base: BlobRef) -> Layout:
    return weights.read_layout(federation.blobs.get(base))


def state_of(federation: Federation, update: ModelUpdate, layout: Layout) -> ClientState:
    """What the client keeps, if the update counts."""
    ref = update.state
    assert ref is not None
    key = names.state_blob(federation.job, update.client, ref.digest)
    return ClientState.unpack(federation.blobs.get(BlobRef(key=key, size=ref.size, digest=ref.digest)), layout)


def channels(federation: Federation, update: ModelUpdate, layout: Layout) -> tuple[Flat, Flat]:
    """What changed of a control variate, and of the model."""
    both = layout.of_updates(("control", "delta"))
    file = federation.file(update)
    weights.check_header(file, both)
    flat = both.flat(file)
    return flat[: layout.size], flat[layout.size :]


def served(federation: Federation, spec: JobSpec, control: Flat) -> BlobRef:
    """A server state that holds this control variate."""
    layout = weights.layout_of({"control": ("F32", control.shape)})
    file = layout.empty_file()
    layout.views(file)["control"][:] = control
    digest = weights.digest_of(file)
    return federation.blobs.put(names.server_blob(federation.job, 1, digest), file)


def test_a_control_variate_goes_round(federation: Federation) -> None:
    """It is kept before the update is told of, and used when the round says so: another round, or another attempt."""
    federation.start("--pool", "cpu")
    spec = digits(strategy={"name": "scaffold"})
    base = federation.given(spec)
    layout = layout_of(federation, base)

    (first,) = federation.trained(1, "client-1", base=base, spec=spec)
    change, delta = channels(federation, first, layout)
    kept = state_of(federation, first, layout)
    np.testing.assert_allclose(change, -delta / (LR * first.metrics["steps"]), rtol=1e-5)
    np.testing.assert_array_equal(kept.control, change)  # of nothing

    server = served(federation, spec, np.full(layout.size, 0.25, np.float32))
    (second,) = federation.trained(2, "client-1", base=base, spec=spec, states=(first.state,), server=server)
    change, delta = channels(federation, second, layout)
    assert kept.control is not None
    expected = -np.float32(0.25) - delta / (LR * second.metrics["steps"])
    np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(state_of(federation, second, layout).control, kept.control + change)

    # Its update did not count: the client is as it was, and nothing was written over.
    (other,) = federation.trained(2, "client-1", base=base, spec=spec, attempt=2, server=server)
    assert other.update is not None
    assert second.update is not None
    assert other.update.digest != second.update.digest
    states = names.states_prefix(federation.job)
    assert federation.blobs.list(states) == sorted(
        names.state_blob(federation.job, "client-1", update.state.digest)
        for update in (first, second, other)
        if update.state
    )
    (again,) = federation.trained(
        2, "client-1", base=base, spec=spec, attempt=3, again=True, states=(first.state,), server=server
    )
    assert (again.update, again.state) in [(second.update, second.state), (other.update, other.state)]


def test_nothing_is_kept_where_nothing_has_to_be(federation: Federation) -> None:
    """By plain averaging: no state, no blob of one."""
    federation.start("--pool", "cpu")
    spec = digits()
    (update,) = federation.trained(1, "client-1", base=federation.given(spec), spec=spec)
    assert update.state is None
    assert not federation.blobs.list(names.states_prefix(federation.job))


@pytest.mark.parametrize("how", [{"name": "int4"}, {"name": "topk", "ratio": 0.05}], ids=["int4", "topk"])
def test_what_compression_left_out_is_sent_later(federation: Federation, how: dict[str, Any]) -> None:
    """What was decoded and what the client keeps are what it trained, and what it kept before."""
    federation.start("--pool", "cpu")
    plain, spec = digits(), digits(compress={"update": how})
    base = federation.given(spec)
    layout = layout_of(federation, base)
    encoding = encoding_of(spec.compress.update, layout.of_updates())
    state, before = None, np.zeros(layout.size, np.float32)
    for number in (1, 2):
        (whole,) = federation.trained(number, "client-1", base=base, spec=plain)
        (update,) = federation.trained(number, "client-1", base=base, spec=spec, states=(state,))
        assert whole.update is not None
        assert update.update is not None
        assert update.update.size < whole.update.size / 4
        file, decoded = federation.file(update), np.empty(layout.size, np.float32)
        weights.check_header(file, encoding.layout)
        encoding.decode_into(file, decoded)
        left = state_of(federation, update, layout).residual
        assert left is not None
        assert np.abs(left).max() > 0
        meant = layout.of_updates().flat(federation.file(whole)) + before
        np.testing.assert_allclose(decoded + left, meant, atol=1e-6)
        state, before = update.state, left


def silo(**changes: Any) -> JobSpec:
    """A job of one silo that keeps its last layer."""
    document = {
        "data": {"name": "own_job:Ward"},
        "model": {"name": "mlp", "hidden": [4]},
        "train": {"epochs": 2, "batch_size": 1, "personal": ["head.*"]},
        "evaluate": {"every": 0},
        "pool": None,
        "silos": ["north"],
    }
    return digits(**{**document, **changes})


def test_what_is_a_silos_own_stays_on_its_disk(federation: Federation) -> None:
    """It is not in the update nor in the store; it is used by the next process, and lost with the disk."""
    trainer = federation.start("--client", "north")
    spec = silo()
    federation.ask(0, "north", spec=spec, group="north")
    base = federation.update().update
    assert base is not None
    assert not [tensor.name for tensor in layout_of(federation, base).tensors if "head" in tensor.name]

    def train(number: int, state: StateRef | None) -> ModelUpdate:
        (update,) = federation.trained(number, "north", base=base, spec=spec, group="north", states=(state,))
        return update

    first, anew = train(1, None), train(2, None)
    folder = federation.directory / "state" / "north" / federation.job
    assert first.state is not None
    kept = np.fromfile(folder / f"state-{first.state.digest[:12]}.safetensors", np.uint8)
    names_kept = {tensor.name for tensor in weights.read_layout(kept).tensors}
    assert names_kept == {"personal.head.bias", "personal.head.weight"}
    assert not federation.blobs.list(names.states_prefix(federation.job))
    trainer.terminate()
    trainer.wait()

    federation.start("--client", "north")
    second = train(2, first.state)
    assert second.state is not None
    assert second.state != anew.state
    assert len(list(folder.iterdir())) == 3

    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    (folder / f"state-{second.state.digest[:12]}.safetensors").unlink()
    assert train(2, second.state).update == anew.update  # asked again, of the same: but not from memory
    assert "is lost: No such file" in federation.log()
    assert train(3, first.state).error is None
    assert "is damaged" in federation.log()


def test_a_silo_keeps_the_states_that_may_count(federation: Federation) -> None:
    """However many rounds it was too late for: what the rounds refer to stays, of the others the last few."""
    federation.start("--client", "north")
    spec = silo()
    federation.ask(0, "north", spec=spec, group="north")
    base = federation.update().update
    assert base is not None
    (first,) = federation.trained(1, "north", base=base, spec=spec, group="north")
    folder = federation.directory / "state" / "north" / federation.job
    assert first.state is not None
    for number in range(2, 14):
        federation.trained(number, "north", base=base, spec=spec, group="north", states=(first.state,))
    assert (folder / f"state-{first.state.digest[:12]}.safetensors").exists()
    assert len(list(folder.iterdir())) == 8
    assert "anew" not in federation.log()


def shrunk(blobs: Blobs, job: str, base: BlobRef, spec: JobSpec) -> tuple[BlobRef, BlobRef]:
    """A next model, and what makes it of `base`."""
    old = blobs.get(base)
    layout = weights.read_layout(old)
    encoding = encoding_of(spec.compress.model, layout.of_updates())
    new, delta = old.copy(), encoding.layout.empty_file()
    layout.flat(new)[:] += np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    shrink(layout.flat(old), layout.flat(new), encoding, None, delta)
    digest = weights.digest_of(new)
    return (
        blobs.put(names.model_blob(job, 1, digest), new),
        blobs.put(names.delta_blob(job, 1, digest), delta),
    )


def test_a_model_is_made_of_the_one_before_it(federation: Federation) -> None:
    """Where the node has that one; otherwise, or where it comes out wrong, the whole model is downloaded."""
    federation.start("--pool", "cpu")
    spec = digits(compress={"model": {"name": "int8"}})
    base = federation.given(spec)
    model, delta = shrunk(federation.blobs, federation.job, base, spec)
    shorter = {"previous": base.digest, "delta": delta}
    (first,) = federation.trained(1, "client-1", base=base, spec=spec)
    assert first.downloaded == base.size
    (second,) = federation.trained(2, "client-1", base=model, spec=spec, **shorter)
    assert (second.downloaded, second.base) == (delta.size, model.digest)

    (federation.directory / "cache" / f"{model.digest}.safetensors").unlink()
    (federation.directory / "cache" / f"{base.digest}.safetensors").unlink()
    federation.start("--client", "client-1")
    (whole,) = federation.trained(2, "client-1", base=model, spec=spec, group="client-1", **shorter)
    assert (whole.downloaded, whole.update) == (model.size, second.update)

    wrong, _ = shrunk(federation.blobs, federation.job, model, spec)
    wrong_way = {"previous": model.digest, "delta": delta}
    (third,) = federation.trained(3, "client-1", base=wrong, spec=spec, **wrong_way)
    assert third.downloaded == delta.size + wrong.size
    assert "downloads the whole model" in federation.log()


def test_a_job_may_begin_with_given_tensors(federation: Federation) -> None:
    """They are in the store, under the job's name."""
    federation.start("--pool", "cpu")
    spec = digits(model={"name": "softmax", "start": "given.safetensors"})
    given = {"head.weight": torch.randn(10, 64), "head.bias": torch.randn(10)}
    federation.blobs.put(names.start_blob(federation.job), save(given))
    found = federation.blobs.get(federation.initial(spec))
    views = weights.read_layout(found).views(found)
    assert {name: views[name].tolist() for name in given} == {name: given[name].tolist() for name in given}


def test_what_comes_too_late_for_its_job_is_taken_back(federation: Federation) -> None:
    """Nobody listens any more and the result is written: neither update nor state stays behind."""
    federation.start("--pool", "cpu")
    federation.job = job_spec.new_job_id("ended")  # nobody consumes its updates: the queue is gone
    signs = {"signs": str(federation.directory), "seconds": 1}
    spec = digits(train={"name": "own_job:patient", "args": signs, "buffers": "local"}, evaluate={"every": 0})
    federation.ask(1, "client-1", base=federation.given(digits()), spec=spec)
    until((federation.directory / "client-1-1-began").exists, "client-1 is being trained")
    federation.blobs.put_json(names.result_blob(federation.job), {})
    until(lambda: '"nobody listens"' in federation.log(), "nobody listens")
    updates = names.updates_prefix(federation.job, 1)
    until(lambda: not federation.blobs.list(updates), "the update is taken back")
    assert not federation.blobs.list(names.states_prefix(federation.job))


def test_an_update_that_is_asked_for_again_has_its_state(federation: Federation) -> None:
    """Another trainer tells of it, from its receipt."""
    trainer = federation.start("--pool", "cpu")
    spec = digits(strategy={"name": "scaffold"})
    base = federation.given(spec)
    (first,) = federation.trained(1, "client-1", base=base, spec=spec)
    trainer.terminate()
    trainer.wait()
    federation.start("--pool", "cpu")
    (again,) = federation.trained(1, "client-1", base=base, spec=spec, attempt=2, again=True)
    assert (again.timings, again.update, again.state) == ({}, first.update, first.state)
