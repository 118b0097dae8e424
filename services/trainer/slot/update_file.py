"""What travels of a client's training, held to the job's limits before it does, and what the client keeps."""

import dataclasses

import numpy as np

from services.trainer.slot.client import Trained
from services.trainer.slot.client_state import State
from shared.aggregation import fold, initial_model
from shared.aggregation.compression.choose import encoding_of
from shared.aggregation.compression.feedback import encode_with_feedback
from shared.aggregation.fold import Buffers, Measures
from shared.aggregation.strategies.strategy import CONTROL, DELTA
from shared.aggregation.weights import File, Flat, Layout, Tiles
from shared.errors import BadInput, OverLimit, Refused
from shared.job.job_spec import JobSpec


def pack(trained: Trained, base: Flat, model: Layout, spec: JobSpec) -> tuple[File, State]:
    """The update's file, and the state that counts if the update does; `BadInput` where it cannot be sent.

    `base` is the model that was trained on, shape (P,).
    """
    if spec.compress.update is not None:
        return _compressed(trained, base, model, spec)
    file, layout, values = trained.file, model.of_updates(), trained.delta
    if trained.change is not None:
        layout = model.of_updates((CONTROL, DELTA))
        file = layout.empty_file()
        values = layout.flat(file)
        values[:] = np.concatenate((trained.change, trained.delta))
    measured(values, trained.examples, base, layout, spec)
    return file, trained.state


def measured(values: Flat | Tiles, examples: int, base: Flat, layout: Layout, spec: JobSpec) -> Measures:
    """Holds an update to the job's limits before it travels: the round then knows at once that none will come.

    `layout` is what such an update would have uncompressed.
    """
    grid = fold.grid_of(spec, 1)
    buffers = Buffers.of(base, layout, grid.max_abs)
    try:
        return fold.check(values, examples, grid, spec.limits.max_norm, buffers=buffers)
    except Refused as refused:
        raise _reason(refused) from refused


def check_initial(file: File, layout: Layout, spec: JobSpec) -> None:
    """Holds the model that a job begins with to what the aggregator will; `BadInput` that says where it comes from."""
    try:
        initial_model.check_size(file.nbytes, spec.limits)
        initial_model.check(file, layout)
    except Refused as refused:
        place = f"model.start, {spec.model.start}" if spec.model.start is not None else f"model, {spec.model.name}"
        raise BadInput(f"{place}: {refused}") from refused


def _compressed(trained: Trained, base: Flat, model: Layout, spec: JobSpec) -> tuple[File, State]:
    layout = model.of_updates()
    encoding = encoding_of(spec.compress.update, layout)
    file, residual = encoding.layout.empty_file(), None
    if spec.compress.update is not None and spec.compress.update.error_feedback:
        residual = trained.state.residual
        residual = np.zeros(model.size, np.float32) if residual is None else residual
    try:
        encode_with_feedback(encoding, trained.delta, residual, file)
    except Refused as refused:
        raise _reason(refused) from refused
    measured(encoding.tiles(file), trained.examples, base, layout, spec)
    return file, dataclasses.replace(trained.state, residual=residual)


def _reason(refused: Refused) -> BadInput:
    """The reason why an update cannot be sent, with advice: a limit may be too low for it, or training diverged."""
    if isinstance(refused, OverLimit):
        advice = "raise that limit, or have clients learn less in a round (fewer epochs, a lower learning rate)"
        return BadInput(f"the update is not sent: {refused}; {advice}")
    return BadInput(f"training diverged: the update {refused}; a lower learning rate may help")
