"""What training gives: numbers drawn by who trains on what, packed and told of as `services.trainer` does it.

What a client sends is a function of the job's seed, the client, the round, the base model, the server's state and its
own: whoever trains it, and however often, it is the same update.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.trainer.slot.client_state import ClientState
from services.trainer.train_task import TrainTask
from shared import names
from shared.aggregation import fold, weights
from shared.aggregation.compression.encoding import encode_with_feedback
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.strategies.choose import strategy_of
from shared.aggregation.strategies.strategy import CONTROL, DELTA, Counted
from shared.aggregation.weights import File, Flat
from shared.events import BlobRef, EvaluateModel, Inputs, Member, ModelUpdate, StateRef
from shared.job.catalog.strategies import Scaffold
from shared.job.job_spec import JobSpec
from shared.record import receipts
from tests.simulation.fakes import FakeBlobs

LAYOUT = weights.layout_of(
    {"weight": ("F32", (5,)), "bias": ("F32", (3,)), "average": ("F32", (2,)), "seen": ("I64", (1,))}, {"average"}
)
UNLIKE = weights.layout_of({"weight": ("F32", (7,))})
HUGE = 2**62  #: more than a sum on any grid can be
TESTED = 9  #: examples of the server's test set
INPUTS = Inputs(shape=(2,), classes=2, labels=("a", "b"))  #: what every trainer's data look like


@dataclass(frozen=True)
class Part:
    """One client's share of an update, as it was meant: (channels, parameters) values, and the buffers."""

    client: str
    examples: int
    values: npt.NDArray[np.float64]
    buffers: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Made:
    """A good update: the round and the base it answers, what is in it, and the state it moves its client to."""

    round: int
    base: str
    parts: tuple[Part, ...]
    before: str = ""  # the digest of the state that it was trained with
    state: str = ""  # and of the one that its client has once it counts

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(part.client for part in self.parts)


def has_tests(spec: JobSpec, group: str) -> bool:
    """Whether a pool, or a silo, has a test set: all have one, or the last silo alone, or nobody."""
    if spec.silos is None or spec.seed < 2:
        return True
    return spec.seed == 2 and group == spec.silos[-1]


class Training:
    """Trains a job's clients; remembers every good update by its digest."""

    def __init__(self, spec: JobSpec, blobs: FakeBlobs) -> None:
        self.made: dict[str, Made] = {}
        self._spec = spec
        self._blobs = blobs
        self._disk: dict[str, File] = {}  # of silos: states by digest
        self._channels = (CONTROL, DELTA) if isinstance(spec.strategy, Scaffold) else (DELTA,)
        self._layout = LAYOUT.of_updates(self._channels)
        self._encoding = encoding_of(spec.compress.update, self._layout)
        self._strategy = strategy_of(spec.strategy, spec.population)

    def update(
        self, order: TrainTask, told: ModelUpdate, fate: str, salt: str, failing: Sequence[str] = ()
    ) -> ModelUpdate:
        """The answer to an order, its files in the store; `NotFound` where the client's state is gone."""
        if order.base is None:
            told = told.model_copy(update={"inputs": INPUTS})
            part = self._initial(order, salt)
            file, parts, after = part[0], (part[1],), None
        elif order.is_batch:
            parts = tuple(self._learn(order, client, "", salt) for client in order.members if client not in failing)
            file, after = self._folded(order, parts), None
        else:
            parts = (self._learn(order, order.client, order.state.digest if order.state else "", salt),)
            file, parts, after = self._packed(order, parts[0])
        if fate == "nan":
            spoil(file, self._encoding.layout)
        if fate == "wrong shape":
            file = UNLIKE.empty_file()
            file[len(UNLIKE.header) :] = 0
        digest = weights.digest_of(file)
        examples = sum(part.examples for part in parts)
        told = told.model_copy(update={"examples": examples, "metrics": metrics_of(order, parts[0]), "state": after})
        if order.is_batch:
            members = tuple(
                Member(client=part.client, examples=part.examples, metrics=metrics_of(order, part)) for part in parts
            )
            told = told.model_copy(update={"client": parts[0].client, "members": members})
        if fate == "wrong base":
            told = told.model_copy(update={"base": "0" * 64})
        key = names.update_blob(told.job, told.round, told.client, digest)
        if fate not in ("nan", "wrong base", "wrong shape"):
            before = order.state.digest if order.state else ""
            self.made[digest] = Made(order.round, told.base or "", parts, before, after.digest if after else "")
        self._blobs.put(key, file, metadata=receipts.receipt(told))
        return told.model_copy(update={"update": BlobRef(key=key, size=file.nbytes, digest=digest)})

    def evaluate(self, event: EvaluateModel) -> tuple[int, dict[str, float], tuple[Member, ...]]:
        """Examples, figures and each client's own, as a `ModelEvaluated` tells them."""
        if not event.clients and not has_tests(self._spec, event.group):
            return 0, {}, ()
        if not event.clients:
            return TESTED, {"accuracy": figure(event.model.digest)}, ()
        members = tuple(
            Member(client=client, examples=held_out(client), metrics={"accuracy": figure(event.model.digest, client)})
            for client in event.clients
        )
        return sum(member.examples for member in members), {}, members

    # --- inside ---------------------------------------------------------------------------------

    def _draw(self, order: TrainTask, client: str, state: str, salt: str) -> tuple[Flat, int]:
        base, server = (ref.digest if ref else "" for ref in (order.base, order.server))
        seed = f"{order.spec.seed}/{order.round}/{client}/{base}/{server}/{state}/{salt}"
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        values = np.random.default_rng(number).normal(0, 0.1, self._layout.size)
        return values.astype(np.float32), 1 + number % 20

    def _initial(self, order: TrainTask, salt: str) -> tuple[File, Part]:
        file = LAYOUT.empty_file()
        file[len(LAYOUT.header) :] = 0
        drawn, _ = self._draw(order, "everybody", "", salt)
        LAYOUT.flat(file)[:] = drawn[: LAYOUT.size]
        return file, self._part(order.client, 1, drawn)

    def _learn(self, order: TrainTask, client: str, state: str, salt: str) -> Part:
        drawn, examples = self._draw(order, client, state, salt)
        return self._part(client, examples, drawn)

    def _part(self, client: str, examples: int, values: Flat) -> Part:
        exact, edge = values.astype(np.float64), self._layout.parameters
        return Part(client, examples, exact[:edge].reshape(len(self._channels), -1), exact[edge:])

    def _packed(self, order: TrainTask, part: Part) -> tuple[File, tuple[Part, ...], StateRef | None]:
        """The update's file, what it says, and the client's next state, which is in its place."""
        state = self._state(order)
        flat, file = flat_of(part), self._encoding.layout.empty_file()
        residual, control = None, None
        if self._spec.compress.update is not None and self._spec.compress.update.error_feedback:
            residual = np.zeros(flat.size, np.float32) if state.residual is None else state.residual.copy()
        encode_with_feedback(self._encoding, flat, residual, file)
        if self._channels != (DELTA,):
            change = flat[: LAYOUT.parameters]
            control = change.copy() if state.control is None else state.control + change
        decoded = np.empty(flat.size, np.float32)
        self._encoding.decode_into(file, decoded)
        return (
            file,
            (self._part(part.client, part.examples, decoded),),
            self._save(order, ClientState(control, residual).pack()),
        )

    def _folded(self, order: TrainTask, parts: Sequence[Part]) -> File:
        assert order.base is not None
        grid, base = fold.grid_of(order.spec, order.cohort_size), self._blobs.get(order.base)
        buffers = fold.Buffers.of(LAYOUT.flat(base), LAYOUT.of_updates(), grid.max_abs)
        summed = fold.Fold(LAYOUT.size, grid, buffers)
        for part in parts:
            counted = Counted(part.client, part.examples)
            summed.add(flat_of(part), self._strategy.weight(counted))
        layout = weights.layout_of({"sums": ("I64", summed.sums.shape)})
        file = layout.empty_file()
        layout.views(file)["sums"][:] = summed.sums
        return file

    def _state(self, order: TrainTask) -> ClientState:
        if order.state is None:
            return ClientState()
        digest, size = order.state.digest, order.state.size
        if order.spec.pool is None:
            return ClientState.unpack(self._disk[digest], LAYOUT)
        key = names.state_blob(order.job, order.client, digest)
        return ClientState.unpack(self._blobs.get(BlobRef(key=key, size=size, digest=digest)), LAYOUT)

    def _save(self, order: TrainTask, file: File | None) -> StateRef | None:
        if file is None:
            return None
        ref = StateRef(size=file.nbytes, digest=weights.digest_of(file))
        if order.spec.pool is None:
            self._disk[ref.digest] = file
        else:
            self._blobs.put(names.state_blob(order.job, order.client, ref.digest), file, digest=ref.digest)
        return ref


def flat_of(part: Part) -> Flat:
    """A part as it lies in an update."""
    return np.concatenate([part.values.ravel(), part.buffers]).astype(np.float32)


def spoil(file: File, single: weights.Layout) -> None:
    """Makes of a good file one that must not be folded."""
    layout = single if file[: len(single.header)].tobytes() == single.header else weights.read_layout(file)
    first = next(iter(layout.views(file).items()))
    for name, view in layout.views(file).items():
        if view.dtype == np.float32:
            first = name, view
    view = first[1].reshape(-1)
    view[0] = np.nan if view.dtype == np.float32 else 0x7FC0 if view.dtype == np.uint16 else HUGE


def metrics_of(order: TrainTask, part: Part) -> dict[str, float]:
    """What a client reports of its training."""
    return {"client_loss": (1.0 + figure("loss", part.client)) / (1 + order.round)}


def held_out(client: str) -> int:
    """How many examples a client evaluates on."""
    return 1 + int(figure("held out", client) * 9)


def figure(*of: str) -> float:
    """A number in [0, 1) that follows from some words."""
    return int(hashlib.sha256("/".join(of).encode()).hexdigest()[:4], 16) / 65536


def strangers(members: tuple[str, ...]) -> Iterator[str]:
    """The members of an order, the last of them not of its round."""
    yield from members[:-1]
    yield "stranger"
