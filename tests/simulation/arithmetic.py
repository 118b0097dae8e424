"""The model and server state that a round must give, computed without `shared.aggregation`'s fold and strategies.

In fractions and float64, of what the clients meant to say. What has no such sum, because it compares updates or loses
some of them to an encoding, is made once more by `shared.aggregation.aggregate`, of the files alone, and must be the
same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.aggregation import weights
from shared.aggregation.aggregate import Aggregation, Plan
from shared.aggregation.fold import Grid
from shared.aggregation.strategies.strategy import Stacked
from shared.aggregation.weights import File
from shared.events import BlobRef
from shared.record.rounds import AcceptedUpdate, by_blob
from tests.simulation.fakes import FakeBlobs

Manifest = Mapping[str, Any]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Meant:
    """What an accepted client meant to say: (channels, parameters) values, and the buffers."""

    examples: int
    staleness: int
    values: Vector
    buffers: Vector


@dataclass(frozen=True)
class Result:
    """A round's model and server state."""

    model: Vector
    server: Mapping[str, Vector]


def is_a_sum(manifest: Manifest) -> bool:
    """Whether the model follows from what clients meant by a few lines of arithmetic."""
    return manifest["strategy"]["name"] in STEPS and manifest["compress"]["model"] is None


def stepped(manifest: Manifest, base: Vector, server: Mapping[str, Vector], updates: Sequence[Meant]) -> Result:
    """What the strategy of a manifest makes of its base, the server state before and its updates."""
    edge = updates[0].values.shape[1]
    result = STEPS[manifest["strategy"]["name"]](manifest, base[:edge], server, updates)
    buffers = [replace(update, values=update.buffers[None]) for update in updates]
    return Result(np.concatenate([result.model, mean(buffers, _weights(manifest, updates))]), result.server)


def _averaged(manifest: Manifest, base: Vector, _: Mapping[str, Vector], updates: Sequence[Meant]) -> Result:
    return Result(base + manifest["strategy"]["lr"] * mean(updates, _weights(manifest, updates)), {})


def _momentum(manifest: Manifest, base: Vector, server: Mapping[str, Vector], updates: Sequence[Meant]) -> Result:
    strategy = manifest["strategy"]
    before = server.get("momentum", np.zeros(base.size))
    momentum = strategy["momentum"] * before + mean(updates, _weights(manifest, updates))
    return Result(base + strategy["lr"] * momentum, {"momentum": momentum})


def _adam(manifest: Manifest, base: Vector, server: Mapping[str, Vector], updates: Sequence[Meant]) -> Result:
    strategy, delta = manifest["strategy"], mean(updates, _weights(manifest, updates))
    first = server.get("first_moment", np.zeros(base.size))
    second = server.get("second_moment", np.full(base.size, strategy["tau"] ** 2))
    first = strategy["beta_1"] * first + (1 - strategy["beta_1"]) * delta
    second = strategy["beta_2"] * second + (1 - strategy["beta_2"]) * delta**2
    model = base + strategy["lr"] * first / (np.sqrt(second) + strategy["tau"])
    return Result(model, {"first_moment": first, "second_moment": second})


def _controlled(manifest: Manifest, base: Vector, server: Mapping[str, Vector], updates: Sequence[Meant]) -> Result:
    equal = [1.0] * len(updates)
    change, delta = mean(updates, equal, channel=0), mean(updates, equal, channel=1)
    control = server.get("control", np.zeros(base.size)) + len(updates) / manifest["population"] * change
    return Result(base + manifest["strategy"]["lr"] * delta, {"control": control})


def _buffered(manifest: Manifest, base: Vector, _: Mapping[str, Vector], updates: Sequence[Meant]) -> Result:
    summed = sum(update.values[0] / np.sqrt(1.0 + update.staleness) for update in updates)
    return Result(base + manifest["strategy"]["lr"] / len(updates) * np.asarray(summed), {})


STEPS = {
    "fedavg": _averaged, "fedavgm": _momentum, "fedadam": _adam, "scaffold": _controlled, "fedbuff": _buffered,
}  # fmt: skip


def mean(updates: Sequence[Meant], by: Sequence[float], channel: int = 0) -> Vector:
    """The weighted mean, in fractions."""
    total = Fraction(sum(by))
    size = updates[0].values.shape[1]
    pairs = list(zip(updates, map(Fraction, by), strict=True))
    sums = [
        sum(Fraction(float(update.values[channel, place])) * weight for update, weight in pairs)
        for place in range(size)
    ]
    return np.array([float(summed / total) for summed in sums])


def _weights(manifest: Manifest, updates: Sequence[Meant]) -> list[float]:
    equal = manifest["strategy"].get("weights", "equal") == "equal"
    return [1 if equal else update.examples for update in updates]


# --- made once more -----------------------------------------------------------------------------


def again(blobs: FakeBlobs, manifest: Manifest, before: Manifest) -> tuple[str, str | None, str | None]:
    """The digests of the model, the server state and the delta that a manifest's updates give after `before`."""
    file = _file(blobs, before["model"])
    server = _file(blobs, before["server"]) if before["server"] else None
    plan = Plan.model_validate({name: manifest[name] for name in Plan.model_fields})
    layout = weights.read_layout(file)
    aggregation = Aggregation(plan, layout, server)
    aggregation.begin(
        Grid(**{name: manifest["grid"][name] for name in ("max_abs", "max_weight", "updates")}), layout.flat(file)
    )
    accepted = sorted(map(AcceptedUpdate.model_validate, manifest["updates"]), key=lambda one: one.client)
    for group in by_blob(accepted):
        update = blobs.get(group[0].blob)
        aggregation.add(update, [one.counted for one in group], partial=group[0].batch is not None)
    unfolded = accepted if aggregation.fold is None else []
    rows = [aggregation.update_layout.flat(blobs.get(one.blob)) for one in unfolded]
    counted = [one.counted for one in accepted]
    left = aggregation.advance(layout.flat(file), counted, Stacked(np.array(rows)) if rows else None)
    return weights.digest_of(file), _digest(left.server), _digest(left.delta)


def _file(blobs: FakeBlobs, ref: Mapping[str, Any]) -> File:
    return blobs.get(BlobRef.model_validate(ref))


def _digest(file: File | None) -> str | None:
    return None if file is None else weights.digest_of(file)
