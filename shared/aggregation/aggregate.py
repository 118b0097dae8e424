"""What a job's strategy makes of update files: each is folded as it travels, and all of them give the next model.

Pure. One update is in memory at a time; what the strategies that compare single updates need of them, they read in
slices. Memory, in vectors of P values: 4 bytes of the model, 4 of the update in hand, 8 of the fold, and 4 for each
vector that the strategy, or the compression of models, keeps from round to round.

The server step is taken with parameters. A model's buffers become the mean of the clients', whatever the strategy is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from shared.aggregation import fold, weights
from shared.aggregation.compression.encoding import Encoding, shrink
from shared.aggregation.compression.encodings import encoding_of
from shared.aggregation.fold import Buffers, Fold, Grid, Measures
from shared.aggregation.strategies.choose import strategy_of
from shared.aggregation.strategies.strategy import Counted, Part, Robust, Slices
from shared.aggregation.weights import File, Flat, Layout, tiles_of
from shared.errors import BadInput, Refused, Stale
from shared.job.catalog.compression import CompressSpec
from shared.job.catalog.strategies import StrategySpec
from shared.job.catalog.training import TrainSpec
from shared.job.job_spec import JobSpec

RESIDUAL = "model.residual"  #: the server state's vector of what compressing the models left out so far


class Plan(BaseModel):
    """All that the next model depends on besides the updates; a manifest holds it."""

    model_config = ConfigDict(frozen=True)

    strategy: StrategySpec
    compress: CompressSpec = CompressSpec()
    population: int = 1  # clients of the job
    lr: float = 1.0  # of the clients' optimizer

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        lr = spec.train.optimizer.lr if isinstance(spec.train, TrainSpec) else 1.0
        return cls(strategy=spec.strategy, compress=spec.compress, population=spec.population, lr=lr)


@dataclass(frozen=True)
class Advanced:
    """What a round's end leaves beside its model, as files to be stored."""

    server: File | None = None  # what the strategy keeps
    delta: File | None = None  # what makes the model of the one before


class Aggregation:
    """One job's rounds, one after the other, under its plan and on models of one layout."""

    def __init__(self, plan: Plan, layout: Layout, server: File | None = None) -> None:
        """`server` is the strategy's state after the last round; without it, or one of another kind, it begins."""
        self.strategy = strategy_of(plan.strategy, plan.population, plan.lr)
        self.fold: Fold | None = None
        self._plan = plan
        self._layout = layout
        self._updates = layout.of_updates(self.strategy.channels)
        self._buffers: Buffers | None = None
        self._encoding = encoding_of(plan.compress.update, self._updates)
        self._down: Encoding | None = None
        if plan.compress.model is not None:
            self._down = encoding_of(plan.compress.model, layout.of_updates())
        self.update_layout = self._encoding.layout
        self.partial_layout = weights.layout_of({"sums": ("I64", (layout.size,))})
        self._server, self._state = self._begun(server)

    # --- a round's updates ----------------------------------------------------------------------

    def begin(self, grid: Grid, model: Flat) -> None:
        """Empties the fold, for a round that begins with `model`, shape (P,)."""
        self._buffers = Buffers.of(model, self._updates, grid.max_abs) if self._layout.buffers else None
        if isinstance(self.strategy, Robust):
            return
        if self.fold is None or self.fold.grid != grid:
            self.fold = None  # its memory goes before the next one's comes
            self.fold = Fold(self._updates.size, grid, self._buffers)
        else:
            self.fold.reset(self._buffers)

    def layout_of(self, *, partial: bool) -> Layout:
        """What an update's file looks like: of one client, or a partial fold of several."""
        return self.partial_layout if partial else self.update_layout

    def measure(
        self,
        file: File,
        updates: Sequence[Counted],
        grid: Grid,
        max_norm: float | None = None,
        *,
        partial: bool = False,
    ) -> Measures:
        """Checks and measures the file of an update, of one client or of several, whose norms are not known yet.

        `Refused` where it must not be folded.
        """
        weights.check_header(file, self.layout_of(partial=partial))
        for update in updates:
            self.strategy.check(update)
            weight = self.strategy.weight(update)
            for what, value in (("examples", update.examples), ("its weight", weight)):
                if not 1 <= value <= grid.max_weight:
                    raise Refused(f"{what} is {value}; allowed: 1 to {grid.max_weight} (limits.max_examples)")
        if not partial:
            return fold.check(self._encoding.tiles(file), updates[0].examples, grid, max_norm, buffers=self._buffers)
        weighed = sum(map(self.strategy.weight, updates))
        return fold.check_partial(self._sums(file), weighed, len(updates), grid, buffers=self._buffers)

    def add(self, file: File, updates: Sequence[Counted], *, partial: bool = False) -> None:
        """Folds a measured update, of one client or of several."""
        if self.fold is None:
            return  # the strategy reads it again, from the store
        if partial:
            weighed = sum(self.strategy.weight(update) for update in updates)
            self.fold.add_partial(self._sums(file), weighed, len(updates))
        else:
            (update,) = updates
            self.fold.add(self._encoding.tiles(file), self.strategy.weight(update), self.strategy.scale(update))

    # --- the next model -------------------------------------------------------------------------

    def advance(self, model: Flat, updates: Sequence[Counted], slices: Slices | None = None) -> Advanced:
        """Makes the next model in place of `model`, shape (P,), of the frozen updates in client order.

        `BadInput` where the step made a value of it, or of what the strategy keeps, that is no float32 number.
        """
        before = model.copy() if self._down is not None else None
        with np.errstate(all="ignore"):  # what they would warn of is found below
            self._step(model, updates, slices)
        self._check_numbers(model)
        delta = None
        if before is not None and self._down is not None:
            delta = self._down.layout.empty_file()
            shrink(before, model, self._down, self._state.get(RESIDUAL), delta)
        return Advanced(self._server if self._state else None, delta)

    # --- inside ---------------------------------------------------------------------------------

    def _step(self, model: Flat, updates: Sequence[Counted], slices: Slices | None) -> None:
        kept = {name: vector for name, vector in self._state.items() if name != RESIDUAL}
        parameters = self._layout.parameters
        if isinstance(self.strategy, Robust):
            if slices is None:
                raise Stale("its updates are not at hand")
            combined = self.strategy.combine(updates, Part(slices, 0, parameters))
            settled = self.strategy.settle(Part(slices, parameters, model.size)) if self._layout.buffers else None
            self.strategy.advance(model, combined)
            if settled is not None:
                model[parameters:] = settled
        elif self.fold is not None:
            self.strategy.check_fold(updates, math.ldexp(math.sqrt(parameters), -self.fold.grid.shift - 1))
            factor = self.strategy.factor(updates)
            channels = len(self.strategy.channels)
            self.fold.apply(model, self.strategy.step, kept, factor=factor, channels=channels)

    def _check_numbers(self, model: Flat) -> None:
        for what, vector in {"": model, **self._state}.items():
            for place, tile in tiles_of(vector):
                # NaN passes through max and min.
                if not (np.isfinite(tile.max()) and np.isfinite(tile.min())):
                    first = place.start + int(np.flatnonzero(~np.isfinite(tile))[0])
                    tensor = self._layout.tensor_at(first).name
                    raise BadInput(
                        f"strategy {self._plan.strategy.name} made {tile[first - place.start]} of a value of "
                        f"{f'{what}, which it keeps of ' if what else ''}{tensor}: a lower strategy.lr or "
                        "train.optimizer.lr may help"
                    )

    def _sums(self, file: File) -> npt.NDArray[np.int64]:
        sums: npt.NDArray[np.int64] = self.partial_layout.views(file)["sums"]
        return sums

    def _begun(self, server: File | None) -> tuple[File, dict[str, Flat]]:
        """The server state's file and its vectors inside it."""
        starts = dict(self.strategy.state)
        down = self._plan.compress.model
        if down is not None and down.error_feedback:
            starts[RESIDUAL] = 0.0
        sizes = {name: self._layout.size if name == RESIDUAL else self._layout.parameters for name in starts}
        layout = weights.layout_of({name: ("F32", (size,)) for name, size in sizes.items()})
        if server is not None and server[: len(layout.header)].tobytes() == layout.header:
            return server, layout.views(server)
        file = layout.empty_file()
        vectors: dict[str, Flat] = layout.views(file)
        for name, start in starts.items():
            vectors[name][:] = start
        return file, vectors
